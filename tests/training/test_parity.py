"""A step's loss and gradients are those of diffusers' training scripts, peft's LoRAs and LyCORIS' products, in float32."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from inkwash.adapters.kinds import LoRA
from inkwash.adapters.low_rank import Attachment
from inkwash.training.config_methods import FinetuneConfig, LoRAConfig
from inkwash.training.loop import generator_for
from inkwash.training.objectives import Objective
from inkwash.training.run import Run, prepare
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from tests.weights.test_single_files import SMALL, random_checkpoint

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
CASES = [
    ("small-sd1", "eps", {}),
    ("small-sd1", "eps", {"weighting": "min-snr"}),
    ("small-sd1", "v", {"weighting": "min-snr", "zero_snr": True}),
    ("small-sd1", "eps", {"input_perturbation": 0.1}),
    ("small-sd2", "v", {}),
    ("small-sdxl", "eps", {}),
]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("families")
    made = {(name, prediction): folder / f"{name}-{prediction}" for name, prediction, _ in CASES}
    for (name, prediction), path in made.items():
        write_folder(random_checkpoint(SMALL[name], prediction), path)
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures of one bucket, cropped from larger ones."""
    place = tmp_path / "pictures"
    place.mkdir()
    for k, size in enumerate(((48, 40), (40, 40))):
        Image.effect_mandelbrot(size, (-2 + k, -1.5, 1, 1.5), 100).convert("RGB").save(place / f"{k}.png")
        (place / f"{k}.txt").write_text(("a taxi, noto style", "a rocket")[k])
    return place


class Draws:
    """What a step's objective is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: dict[str, Any] = {}
        ours = Objective.losses
        names = ("network", "latent", "noise", "t", "cond", "schedule", "mask", "perturbation")

        def spy(objective: Objective, *args: Any) -> tuple[Tensor, Tensor]:
            self.seen = dict(zip(names, args, strict=False))
            return ours(objective, *args)

        monkeypatch.setattr(Objective, "losses", spy)


def script_loss(pipe: Any, kind: str, prediction: str, seen: dict[str, Any], captions: list[str],
                sizes: list[tuple[int, ...]], options: dict[str, Any]) -> Tensor:  # fmt: skip
    """The loss as diffusers' train_text_to_image(_sdxl).py computes it."""
    scheduler = diffusers.DDPMScheduler.from_config(
        pipe.scheduler.config, prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        rescale_betas_zero_snr=bool(options.get("zero_snr")),
    )  # fmt: skip
    latent, noise, t = seen["latent"], seen["noise"], seen["t"]
    added = (
        noise
        if seen["perturbation"] is None
        else noise + options["input_perturbation"] * seen["perturbation"]
    )
    noised = scheduler.add_noise(latent, added, t)
    more = {}
    if kind == "small-sdxl":
        context, _, pooled, _ = pipe.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
        more = {
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor(sizes, dtype=torch.float32)}
        }
    else:
        context, _ = pipe.encode_prompt(captions, "cpu", 1, False)
    predicted = pipe.unet(noised, t, context, **more).sample
    target = noise if prediction == "eps" else scheduler.get_velocity(latent, noise, t)
    if options.get("weighting") != "min-snr":
        return F.mse_loss(predicted.float(), target.float())
    from diffusers.training_utils import compute_snr

    snr = compute_snr(scheduler, t)
    weights = torch.stack([snr, 5.0 * torch.ones_like(t)], dim=1).min(dim=1)[0]
    weights = weights / snr if prediction == "eps" else weights / (snr + 1)
    return (
        F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3)) * weights
    ).mean()


def opened(folder: Path, kind: str) -> Any:
    """diffusers' pipeline, whose own networks learn."""
    of = diffusers.StableDiffusionXLPipeline if kind == "small-sdxl" else diffusers.StableDiffusionPipeline
    pipe = of.from_pretrained(folder, local_files_only=True)
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).requires_grad_(False).eval()
    return pipe


def prepared(method: str, config: type, folder: Path, pictures: Path, output: Path, **more: object) -> Run:
    own = {"model": str(folder), "data": str(pictures), "output": str(output), "batch_size": 2, "resolution": 32,
           "buckets": False, "cache": "none", "precision": "fp32"}  # fmt: skip
    run = prepare(method, config.model_validate(own | more))
    assert isinstance(run, Run)
    return run


def described(run: Run) -> tuple[list[str], list[tuple[int, ...]]]:
    """Captions of the first batch, and original size, crop and target as SDXL's time ids have them, from the pictures."""
    examples = [run.dataset.examples[i] for i in run.dataset.batch_at(0)]
    sizes = []
    for example in examples:
        width, height = example.size
        scaled = round(width * 32 / height)
        sizes.append((height, width, 0, int((scaled - 32) / 2 + 0.5), 32, 32))
    return [example.captions[0] for example in examples], sizes


@pytest.mark.parametrize(("kind", "prediction", "options"), CASES)
def test_a_step_of_all_weights_is_diffusers(
    kind: str, prediction: str, options: dict[str, Any], folders: dict, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, draws = folders[kind, prediction], Draws(monkeypatch)
    run = prepared("text-to-image", FinetuneConfig, folder, pictures, tmp_path / "run", **options)
    [(_, loss, _)] = list(run.task.losses(0, 0, generator_for(0, 0)))
    loss.backward()
    pipe = opened(folder, kind)
    pipe.unet.requires_grad_(True)
    wanted = script_loss(pipe, kind, prediction, draws.seen, *described(run), options)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    unet = run.model.unet
    ours = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    theirs = {name: p.grad for name, p in pipe.unet.named_parameters() if p.grad is not None}
    ours = translate(ours, tables.unet_table(unet.config))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, scale), msg=name)


@pytest.mark.parametrize("kind", ["small-sd1", "small-sdxl"])
def test_a_loras_step_is_pefts_and_its_file_opens_there(
    kind: str, folders: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    folder, draws = folders[kind, "eps"], Draws(monkeypatch)
    more = {"rank": 4, "names": "peft", "save_dtype": "fp32", "conv_rank": 0}
    run = prepared("lora", LoRAConfig, folder, pictures, tmp_path / "run", **more)
    module, rng = run.trainable.module, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    [(_, loss, _)] = list(run.task.losses(0, 0, generator_for(0, 0)))
    loss.backward()
    for name in ("weights", "gradients"):
        (tmp_path / name).mkdir()
    path = run.trainable.write(tmp_path / "weights", dict(module.state_dict()), {})
    gradients = {name: p.grad for name, p in module.named_parameters()}
    ours = load_file(run.trainable.write(tmp_path / "gradients", module.state_dict() | gradients, {}))
    pipe = opened(folder, kind)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    learning = {name: p.requires_grad_(True) for name, p in pipe.unet.named_parameters() if "lora_" in name}
    wanted = script_loss(pipe, kind, "eps", draws.seen, *described(run), {})
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    theirs = {f"unet.{name.replace('.default_0', '')}": p.grad for name, p in learning.items()}
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_doras_file_opens_in_diffusers(folders: dict, pictures: Path, tmp_path: Path) -> None:
    """Under peft's names; of matrices, and of 1x1 and 3x3 convolutions."""
    pytest.importorskip("peft")
    folder = folders["small-sd1", "eps"]
    more = {"rank": 4, "alpha": 2, "conv_rank": 2, "targets": ["to_q", "to_out.0", "proj_in"], "kind": "dora"}
    run = prepared(
        "lora", LoRAConfig, folder, pictures, tmp_path / "run", **more, names="peft", save_dtype="fp32"
    )
    module, rng = run.trainable.module, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=rng))
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    path = run.trainable.write(tmp_path / "run", dict(module.state_dict()), {})
    pipe = opened(folder, "small-sd1")
    width = pipe.unet.config.cross_attention_dim
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([900, 30]), torch.randn(2, 5, width)
    with torch.no_grad():
        plain = pipe.unet(x, t, context).sample
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        wanted = pipe.unet(x, t, context).sample
        with run.trainable.attached():
            found = run.model.unet(x, t, context)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def locon(own: dict[str, Tensor]) -> Tensor:
    from lycoris.functional import locon

    return locon.diff_weight(own["lora_down"], own["lora_up"], None, gamma=1.0)


def loha(own: dict[str, Tensor]) -> Tensor:
    from lycoris.functional import loha

    given = (own[f"hada_{name}"] for name in ("w1_b", "w1_a", "w2_b", "w2_a"))
    return loha.diff_weight(*given, None, None, gamma=torch.tensor(1.0))


def lokr(own: dict[str, Tensor]) -> Tensor:
    from lycoris.functional import lokr

    given = [own.get(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    alpha = own["lokr_w2_a"].shape[1] if "lokr_w2_a" in own else 1.0  # which it divides by the rank
    return lokr.diff_weight(*given, gamma=alpha)


@pytest.mark.parametrize(("kind", "difference"), [("lora", locon), ("loha", loha), ("lokr", lokr)])
def test_a_step_of_a_kind_is_that_of_lycoris_product(
    kind: str, difference: Any, folders: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients by the adapter attached, and by weights with LyCORIS' product added to them."""
    pytest.importorskip("lycoris")
    draws = Draws(monkeypatch)
    more = {"kind": kind, "rank": 2, "factor": 4, "conv_rank": 2}
    run = prepared("lora", LoRAConfig, folders["small-sd1", "eps"], pictures, tmp_path / "run", **more)
    module, unet, rng = run.trainable.module, run.model.unet, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    [(_, loss, _)] = list(run.task.losses(0, 0, generator_for(0, 0)))
    loss.backward()
    copies: dict[str, dict[str, Tensor]] = {}
    for name, p in module.named_parameters():
        layer, _, field = name.partition(".")[2].partition(":")
        copies.setdefault(layer, {})[field] = p.detach().clone().requires_grad_(True)
    weights = dict(unet.named_parameters())
    changed = {}
    for layer, own in copies.items():
        name = f"{module.targets[layer].path}.weight"
        changed[name] = weights[name].detach() + difference(own).view_as(weights[name])
    seen = draws.seen
    alpha_bar = seen["schedule"].alphas_cumprod[seen["t"]].float().view(-1, 1, 1, 1)
    noised = alpha_bar.sqrt() * seen["latent"] + (1 - alpha_bar).sqrt() * seen["noise"]
    predicted = torch.func.functional_call(unet, changed, (noised, seen["t"]), dict(seen["cond"]))
    wanted = F.mse_loss(predicted, seen["noise"])
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for name, p in module.named_parameters():
        layer, _, field = name.partition(".")[2].partition(":")
        torch.testing.assert_close(p.grad, copies[layer][field].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_doras_step_is_pefts(tmp_path: Path) -> None:
    """Loss and gradients of directions and magnitudes, through two layers, in float32; the norm is a constant there."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = nn.Sequential(OrderedDict(first=nn.Linear(12, 20), act=nn.SiLU(), second=nn.Linear(20, 8)))
    x, target = torch.randn(5, 12), torch.randn(5, 8)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["first", "second"], use_dora=True)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    changes, pairs = [], []
    for name in ("first", "second"):
        layer = theirs.base_model.model.get_submodule(name)
        made = {
            "lora_down": layer.lora_A["default"].weight,
            "lora_up": layer.lora_B["default"].weight,
            "dora_scale": layer.lora_magnitude_vector["default"].weight,
        }
        own = {}
        for field, parameter in made.items():
            with torch.no_grad():
                parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape))
            value = parameter.detach().clone()
            own[field] = (value.view(-1, 1) if field == "dora_scale" else value).requires_grad_(True)
            pairs.append((f"{name} {field}", own[field], parameter))
        changes.append((plain.get_submodule(name), LoRA(alpha=2.0, **own), 1.0))
    with Attachment(changes):
        loss = F.mse_loss(plain(x), target)
        loss.backward()
    wanted = F.mse_loss(theirs(x), target)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for name, ours, peers in pairs:
        assert ours.grad is not None and peers.grad is not None and peers.grad.abs().max() > 1e-4
        torch.testing.assert_close(ours.grad.view_as(peers.grad), peers.grad, rtol=1e-5, atol=1e-5, msg=name)
