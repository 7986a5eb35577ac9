"""Methods that train first stages, CLIP, and models that see no text: losses as others compute them, results that open."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import inkwash
from inkwash.cli import main
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ
from inkwash.models.conditions import ClassConfig, SemanticConfig
from inkwash.pipeline.images import to_pixels
from inkwash.training.config_networks import FirstStageConfig
from inkwash.training.methods import METHODS as ALL
from inkwash.training.network_run import NetworkRun
from inkwash.training.pixels import PixelBatch
from inkwash.training.run import prepare, trained
from inkwash.training.start import narrowed
from inkwash.training.tasks.contrast import CLIP, ContrastiveTask
from inkwash.training.tasks.reconstruction import ReconstructionLoss, ReconstructionTask, by_codes, by_kl
from inkwash.weights.checkpoint import Component, assemble
from inkwash.weights.families import DDPM_CIFAR10, FAMILIES, LDM_CIN256, LDM_LAYOUT, LDM_SEMANTIC, LDM_SR
from inkwash.weights.models.clip_folder import read_clip
from inkwash.weights.models.component import read_component, write_component
from inkwash.weights.models.convert import read_checkpoint
from tests.models.test_unet import randomise
from tests.support.processes import run_ranks
from tests.weights.test_zoo import BERT, VQ, small

QUICK = {"steps": 4, "save_every": 2, "log_every": 1, "lr": 1e-3, "batch_size": 2}
SMALL_STAGE = {"width": 8, "res_blocks": 1, "disc_start": 2, "disc_width": 8, "disc_layers": 1}
SMALL_CLIP = {"width": 16, "layers": 1, "vision_width": 16, "vision_layers": 1, "head_width": 8, "patch": 8,
              "projection": 8, "resolution": 16}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in two folders, with captions, boxes and maps of labels."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for k, colour in enumerate(("red", "green", "blue", "black", "orange", "purple")):
        kind = ("disc", "square")[k % 2]
        (folder / kind).mkdir(exist_ok=True)
        image, labels = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 1)
        for one, fill in ((image, colour), (labels, 3)):
            draw = ImageDraw.Draw(one)
            (draw.ellipse if kind == "disc" else draw.rectangle)((4 + k, 4, 24, 24 + k), fill)
        image.save(folder / kind / f"{k}.png")
        (folder / "maps").mkdir(exist_ok=True)
        labels.save(folder / "maps" / f"{k}.png")
        rows.append({"file_name": f"{kind}/{k}.png", "text": f"a {colour} {kind}", "labels": f"maps/{k}.png",
                     "boxes": [f"{(4 + k) / 32},0.125,0.75,{(24 + k) / 32}={k}"]})  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage with a codebook, as a folder."""
    network = AutoencoderVQ(VQ)
    randomise(network)
    folder = tmp_path_factory.mktemp("stage") / "vq"
    write_component(Component(VQ, network.state_dict()), folder, "diffusers")
    return folder


DESIGNS = {  # at a small size, under their own names
    family.name.removeprefix("small-"): family
    for family in (
        small(LDM_CIN256, 64, 24, cond_stage=ClassConfig(3, 24)),
        small(LDM_LAYOUT, 64, 64, cond_stage=replace(BERT, vocab_size=90, max_length=11)),
        small(LDM_SEMANTIC, 64, cond_stage=SemanticConfig(7, 3)),
        small(LDM_SR, 64),
        small(DDPM_CIFAR10, 32),
    )
}


@pytest.fixture(autouse=True)
def designs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in DESIGNS.items():
        monkeypatch.setitem(FAMILIES, name, family)


METHODS = {
    "kl": (
        "autoencoder",
        SMALL_STAGE | {"resolution": 32, "design": "kl-f4", "reconstruction": "l2", "ema": 0.5},
    ),
    "vq": ("autoencoder", SMALL_STAGE | {"resolution": 32, "design": "vq-f4", "codebook_size": 16}),
    "tiny": (
        "tiny-autoencoder",
        {"model": "mini", "resolution": 64, "width": 8, "disc_start": 2, "disc_width": 8, "disc_layers": 1},
    ),
    "clip": ("clip", SMALL_CLIP | {"tokenizer": "mini"}),
    "ddpm": (
        "unconditional",
        {"design": "ddpm-cifar10", "resolution": 16, "noise_schedule": "cosine", "ema": 0.5},
    ),
    "class": ("class", {"design": "ldm-cin256"}),
    "layout": ("layout", {"design": "ldm-layout"}),
    "semantic": ("semantic", {"design": "ldm-semantic"}),
    "upscaler": ("upscaler", {"design": "ldm-sr"}),
    "class of a model with words": ("class", {"layout": "diffusers"}),
    "layout of a model with words": ("layout", {"layout": "single"}),
    "upscaler of a model with words": ("upscaler", {"layout": "diffusers"}),
}


def options(
    name: str, pictures: Path, stage: Path, tiny: Path, output: Path
) -> tuple[str, dict[str, object]]:
    method, own = METHODS[name]
    more = {"data": str(pictures), "output": str(output), "buckets": False} | QUICK | own
    if str(own.get("design", "")).startswith("ldm"):
        more["first_stage"] = str(stage)
    if "words" in name:
        more["model"] = str(tiny)
    return method, more


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_a_stopped_run_goes_on_bit_equal(
    name: str, pictures: Path, stage: Path, tiny: Path, tmp_path: Path
) -> None:
    method, whole = options(name, pictures, stage, tiny, tmp_path / "a")
    _, halves = options(name, pictures, stage, tiny, tmp_path / "b")
    first = trained(method, **whole)
    trained(method, **halves | {"steps": 2})
    assert trained(method, **halves) is not None and first is not None
    a, b = (load_file(tmp_path / side / "state.safetensors") for side in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    lines = [json.loads(line) for line in (tmp_path / "b/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["error"] > 0 for line in lines)
    assert ("fake" in lines[-1]) == (name in ("kl", "vq", "tiny"))
    if method == "clip":
        return
    if method in ("autoencoder", "tiny-autoencoder"):
        assert read_component(first).config.factor == (8 if method == "tiny-autoencoder" else 4)
        assert (tmp_path / "a/reconstructions.png").exists()
        return
    model = inkwash.load(first)
    small_picture = Image.open(pictures / "disc/0.png").resize((16, 16))
    made = {
        "unconditional": lambda: model.text_to_image("", steps=2),
        "class": lambda: model.text_to_image("", steps=2, class_label=1),
        "layout": lambda: model.layout_to_image(["0,0.5,0.6,1=1"], steps=2),
        "semantic": lambda: model.semantic_to_image(Image.open(pictures / "maps/0.png"), steps=2),
        "upscaler": lambda: model.upscale("", small_picture, steps=2),
    }[method]()
    assert made[0].size == (
        (16, 16) if method == "unconditional" else (32, 32) if "words" in name else made[0].size
    )
    if method == "class":
        assert (tmp_path / "a/classes.txt").read_text() == "disc\nsquare\n"
    if model.cond_stage is not None:  # it learns too
        start = read_checkpoint(tmp_path / "a/start.safetensors").cond_stage
        assert any(not torch.equal(v, start.tensors[k]) for k, v in model.cond_stage.state_dict().items())


# ---------------------------------------------------------------- first stages


class OneBatch:
    """Random pictures, always the same."""

    size = 3

    def __init__(self, side: int = 16):
        self.pixels = torch.rand(self.size, 3, side, side, generator=torch.Generator().manual_seed(7)) * 2 - 1

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> PixelBatch:
        return PixelBatch(self.pixels[rows], ["a cat", "a dog", "a cat"][rows])


def test_the_kl_loss_and_its_gradients_are_diffusers(tmp_path: Path) -> None:
    """Of latent diffusion's sum, with the posterior, its sample and its divergence as diffusers has them."""
    diffusers = pytest.importorskip("diffusers")
    config = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1)
    model = AutoencoderKL(config)
    randomise(model)
    write_component(Component(config, model.state_dict()), tmp_path / "kl", "diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "kl", local_files_only=True)
    theirs.train()
    source, weight = OneBatch(), 0.01
    task = ReconstructionTask(
        model, by_kl(model, weight), model.decoder.conv_out.weight, source, ReconstructionLoss("l1")
    )
    [(name, loss, _logs)] = list(task.losses(0, 0, torch.Generator().manual_seed(3)))
    posterior = theirs.encode(source.pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    made = theirs.decode(posterior.mean + posterior.std * noise).sample
    wanted = F.l1_loss(made, source.pixels) + weight * posterior.kl().mean()
    loss.backward()
    wanted.backward()
    assert name == "autoencoder"
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    ours, other = model.encoder.conv_in.weight.grad, theirs.encoder.conv_in.weight.grad
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        model.decoder.conv_out.bias.grad, theirs.decoder.conv_out.bias.grad, rtol=1e-5, atol=1e-6
    )


def test_the_codebook_loss_and_its_gradients_are_the_papers() -> None:
    """van den Oord et al. 2017, equation 3, computed here by indices; and the straight-through gradient."""
    model = AutoencoderVQ(VQ)
    randomise(model)
    source = OneBatch()
    task = ReconstructionTask(
        model, by_codes(model, 1.0), model.decoder.conv_out.weight, source, ReconstructionLoss("l2")
    )
    [(_, loss, _)] = list(task.losses(0, 0, torch.Generator()))
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    latent = model.quant_conv(model.encoder(source.pixels))
    flat = latent.permute(0, 2, 3, 1).reshape(-1, VQ.latent_channels)
    book = model.quantize.embedding.weight
    nearest = (flat[:, None] - book[None]).square().sum(-1).argmin(1)
    codes = book[nearest]
    rounded = (flat + (codes - flat).detach()).view_as(latent.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    made = model.decoder(model.post_quant_conv(rounded))
    bottleneck = F.mse_loss(codes, flat.detach()) + 0.25 * F.mse_loss(flat, codes.detach())
    wanted = F.mse_loss(made, source.pixels) + bottleneck
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)


def prepared_codebook(more: dict[str, object]) -> tuple[AutoencoderVQ, ReconstructionTask]:
    run = prepare("autoencoder", FirstStageConfig.model_validate(more))
    assert isinstance(run, NetworkRun) and isinstance(run.task, ReconstructionTask)
    assert isinstance(run.task.model, AutoencoderVQ)
    return run.task.model, run.task


def test_a_new_codebook_is_made_of_latents_and_a_trained_one_is_kept(pictures: Path, tmp_path: Path) -> None:
    more = SMALL_STAGE | {"data": str(pictures), "output": str(tmp_path / "run"), "buckets": False}
    more |= {"resolution": 32, "design": "vq-f4", "codebook_size": 64, "batch_size": 6, "steps": 2}
    model, task = prepared_codebook(more)
    codes = model.quantize.embedding.weight.detach()
    pixels = torch.cat([to_pixels(Image.open(path)) for path in sorted(pictures.glob("[ds]*/*.png"))])
    with torch.no_grad():
        latents = model.encoded(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    assert (codes[:, None] - latents[None]).norm(dim=2).min(1).values.max() < 1e-4
    [(_, _, logs)] = list(task.losses(0, 0, torch.Generator()))
    assert logs["used"] > 0.2  # near 0 it is one code or two of 64
    path = trained("autoencoder", **more)
    assert path is not None
    kept, _ = prepared_codebook(
        {"model": str(path), "data": str(pictures), "output": str(tmp_path / "next"), "resolution": 32}
    )
    written = load_file(path / "diffusion_pytorch_model.safetensors")["quantize.embedding.weight"]
    assert torch.equal(kept.quantize.embedding.weight, written)


def test_a_decoder_learns_alone_and_latents_stay(pictures: Path, tmp_path: Path) -> None:
    more = {
        "data": str(pictures),
        "output": str(tmp_path / "run"),
        "buckets": False,
        "resolution": 64,
        **QUICK,
    }
    path = trained("autoencoder", model="mini", train="decoder", disc_weight=0, **more)
    before, after = inkwash.load("mini"), inkwash.load("mini", parts=[path])
    pixels = torch.cat([to_pixels(Image.open(pictures / "disc/0.png").resize((64, 64)))])
    with torch.inference_mode():
        latent = before.autoencoder.encode(pixels).mean
        assert torch.equal(latent, after.autoencoder.encode(pixels).mean)
        assert not torch.equal(before.autoencoder.decode(latent), after.autoencoder.decode(latent))


def test_the_scale_factor_brings_latents_to_unit_deviation(pictures: Path, tmp_path: Path) -> None:
    more = {"data": str(pictures), "output": str(tmp_path / "run"), "buckets": False} | QUICK | SMALL_STAGE
    path = trained("autoencoder", **more | {"design": "kl-f4", "steps": 1, "resolution": 32})
    part = read_component(path)
    figures = json.loads((tmp_path / "run/figures.json").read_text())
    assert part.config.scale_factor == pytest.approx(figures["scale_factor"])
    model = AutoencoderKL(part.config)
    model.load_state_dict(dict(part.tensors))
    pixels = torch.cat([to_pixels(Image.open(p)) for p in sorted(pictures.glob("[ds]*/*.png"))])
    with torch.inference_mode():
        posterior = model.encode(pixels)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    assert posterior.sample(noise).std().item() == pytest.approx(1, abs=0.05)
    assert 0 < figures["psnr"] < 60


# ---------------------------------------------------------------- CLIP


def test_clip_is_transformers_with_its_loss_and_gradients(pictures: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    more = {"data": str(pictures), "output": str(tmp_path / "run"), "tokenizer": "mini"} | QUICK | SMALL_CLIP
    folder = trained("clip", **more)
    theirs = transformers.CLIPModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager"
    )
    text, vision, scale, tokenizer = read_clip(folder)
    model = CLIP(text, vision).requires_grad_(True)
    model.logit_scale.data.fill_(scale)
    source = OneBatch()
    source.batch = lambda number, rng, rows: PixelBatch(source.pixels, ["a cat", "a dog", "a red taxi"])  # type: ignore[method-assign]
    [(_, loss, _)] = list(ContrastiveTask(model, tokenizer, source).losses(0, 0, torch.Generator()))
    mean, std = (torch.tensor(transformers.CLIPImageProcessor.from_pretrained(folder).to_dict()[key]).view(3, 1, 1)
                 for key in ("image_mean", "image_std"))  # fmt: skip
    tokens = torch.tensor(tokenizer(["a cat", "a dog", "a red taxi"]))
    wanted = theirs(
        input_ids=tokens, pixel_values=((source.pixels + 1) / 2 - mean) / std, return_loss=True
    ).loss
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    grads = dict(theirs.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name].grad, rtol=1e-3, atol=1e-6, msg=name)


def test_equal_captions_are_no_false_negatives() -> None:
    from inkwash.training.distributed import World
    from inkwash.training.tasks.contrast import sharded_contrastive_loss

    vectors = F.normalize(torch.eye(3)[[0, 1, 0]], dim=1)
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2]])
    loss, right = sharded_contrastive_loss(vectors, vectors, tokens, torch.tensor(4.0), World())
    best = -torch.log_softmax(torch.tensor([1.0, 0.0, 1.0]) * torch.tensor(4.0).exp(), 0)[0]
    assert right == 1 and loss.item() < best.item() + 0.1
    apart = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert sharded_contrastive_loss(vectors, vectors, apart, torch.tensor(4.0), World())[0] > loss - 1e-6


@pytest.mark.parametrize("method", ["clip", "upscaler"])
def test_ranks_equal_one(method: str, pictures: Path, tiny: Path, tmp_path: Path) -> None:
    """The loss over all pairs from two processes' halves, and noise of a picture that is its own."""
    own = SMALL_CLIP | {"tokenizer": "mini"}
    own = own if method == "clip" else {"model": str(tiny), "layout": "diffusers", "buckets": False}
    own |= {"data": str(pictures), "steps": 3, "lr": 0.1, "optimizer": "sgd"}
    trained(method, **own, output=str(tmp_path / "one"), batch_size=4)
    run_ranks(2, partial(trained, method, **own, output=str(tmp_path / "many"), batch_size=2))
    one, many = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "many"))
    for key, value in one.items():
        if key.startswith("modules/"):
            torch.testing.assert_close(many[key], value, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- models without words


def test_a_pixel_model_opens_in_diffusers_with_its_schedule(pictures: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    more = {"data": str(pictures), "output": str(tmp_path / "run"), "buckets": False} | QUICK
    path = trained("unconditional", **more, **METHODS["ddpm"][1])
    pipe = diffusers.DDPMPipeline.from_pretrained(path, local_files_only=True)
    ours = assemble(read_checkpoint(path))
    theirs = diffusers.DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    torch.testing.assert_close(ours.schedule.alphas_cumprod.float(), theirs, rtol=1e-4, atol=1e-7)
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])
    with torch.inference_mode():
        torch.testing.assert_close(ours.unet(x, t), pipe.unet(x, t).sample, rtol=1e-4, atol=1e-4)


def test_boxes_lie_where_their_things_are_in_the_view() -> None:
    from inkwash.data.buckets import Placement
    from inkwash.data.cache import View
    from inkwash.data.examples import Bytes, Example
    from inkwash.training.inputs import boxes_in

    example = Example(
        Bytes(Path("x.png")), columns={"boxes": ["0,0,0.5,1=left", [0.75, 0.5, 1, 1, "corner"]]}
    )
    view = View(Placement((16, 16), (32, 16)), 8, 0)
    assert [str(box) for box in boxes_in(example, view)] == ["0,0,0.5,1=left"]
    flipped = boxes_in(example, replace(view, left=16, flipped=True))
    assert [str(box) for box in flipped] == ["0,0.5,0.5,1=corner"]


@pytest.mark.parametrize(
    ("method", "given", "levels"),
    [
        ("unconditional", {"design": "ddpm-cifar10", "width": 32, "channel_mult": (1, 2, 4)}, (0, 1, 0)),
        ("unconditional", {"design": "ddpm-cifar10", "width": 64, "channel_mult": (1,)}, (1,)),
        ("class", {"design": "ldm-cin256", "first_stage": "x", "width": 96, "channel_mult": (1, 2)}, (0, 1)),
        (
            "class",
            {"design": "ldm-cin256", "first_stage": "x", "channel_mult": (1, 1, 1, 1, 1)},
            (0, 1, 1, 1, 1),
        ),
    ],
)
def test_a_design_is_narrowed(method: str, given: dict[str, object], levels: tuple[int, ...]) -> None:
    config = ALL[method].config.model_validate({"data": "x", "output": "x"} | given)
    design = {"ddpm-cifar10": DDPM_CIFAR10, "ldm-cin256": LDM_CIN256}[config.design].unet  # type: ignore[attr-defined]
    unet = narrowed(design, config, 32)  # type: ignore[arg-type]
    assert unet.channels == given.get("width", design.channels)
    assert (unet.channel_mult, unet.transformer_depth) == (given["channel_mult"], levels)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["unconditional", "--design", "ldm-vq4"], "design 'ldm-vq4' needs a first_stage"),
        (["unconditional", "--design", "ddpm-cifar"], "design 'ddpm-cifar' is not one of"),
        (["unconditional", "--width", "64"], "width 64 goes with a design; a model has its own"),
        (["class", "--class-dropout", "2"], "--class-dropout 2.0 is too large"),
        (["autoencoder", "--design", "kl-f9"], "design 'kl-f9' is unknown; near: kl-f"),
        (["autoencoder", "--perceptual", "lpips"], "perceptual lpips takes 2 perceptual_files; 0 given"),
        (["autoencoder", "--validation", "0.1"], "validation 0.1 is of diffusion models"),
        (["clip", "--resolution", "40"], "resolution 40x40 is not a square of patches of 32 pixels"),
        (["tiny-autoencoder", "--model", "TINY"], "a tiny autoencoder has factor 8; TINY's has factor 2"),
        (["semantic", "--model", "TINY"], "has no picture for the role labels"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("x.png")
    arguments = [one.replace("TINY", str(tiny)) for one in arguments]
    code = main(["train", *arguments, "--data", ".", "--output", "run"])
    error = capsys.readouterr().err
    assert code in (1, 2) and said.replace("TINY", str(tiny)) in error and len(error.splitlines()) == 1, error


def test_a_broken_picture_of_a_first_stage_is_passed_over_by_name(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for k, path in enumerate(pictures.glob("[ds]*/*.png")):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: len(content) // 2] if k == 0 else content)
    own = {
        "data": str(folder),
        "buckets": False,
        "design": "kl-f4",
        "steps": 3,
        "resolution": 32,
    } | SMALL_STAGE
    assert trained("autoencoder", output=str(tmp_path / "run"), **own)
    assert caplog.text.count("is not a readable picture") == 1
    with pytest.raises(ValueError, match="is not a readable picture"):
        trained("autoencoder", output=str(tmp_path / "other"), on_broken="stop", **own)
