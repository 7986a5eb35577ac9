"""Pictures of prompts through a prior, as diffusers' StableUnCLIPPipeline draws them, and its vectors as Kandinsky's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.cli import main
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas
from inkwash.explain.denoising import denoising_strip
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.conditions import PictureConfig, VectorConfig, VectorStatistics
from inkwash.models.prior import Prior, PriorConfig
from inkwash.pipeline.prior import open_prior, timesteps
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import recorded
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.weights.checkpoint import Component, TextComponent
from inkwash.weights.families import FAMILIES
from inkwash.weights.inspect import inspect
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.prior import PriorParts, write_prior
from tests.models.test_unet import randomise
from tests.pipeline.test_pipelines_parity import psnr
from tests.pipeline.test_vary import EYE, PICTURES, UNCLIP, seeing
from tests.support.peers import their_pipeline
from tests.weights.test_single_files import SMALL, random_checkpoint, tensors_of

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SEED, SIDE, STEPS, PRIOR_STEPS, DIM = 3, 32, 4, 6, 64
OURS: dict[str, Any] = {
    "seed": SEED, "steps": STEPS, "sampler": "euler", "schedule": "uniform", "cfg_scale": 4.0,
    "prior_steps": PRIOR_STEPS, "prior_cfg_scale": 3.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, UNCLIP.name, UNCLIP)
    monkeypatch.setitem(FAMILIES, "small-sd1", SMALL["small-sd1"])


def random_prior(spacing: str = "linspace", dim: int = DIM) -> PriorParts:
    tokenizer = random_checkpoint(UNCLIP).text[0].tokenizer
    text = CLIPText(
        CLIPTextConfig(
            vocab_size=len(tokenizer.vocab), width=dim, num_layers=1, num_heads=2, mlp_width=16,
            eos_token=tokenizer.end, projection_dim=dim,
        )
    )  # fmt: skip
    config = PriorConfig(vector_dim=dim, num_heads=2, head_dim=8, num_layers=2)
    network, random = Prior(config), torch.Generator().manual_seed(0)
    for module in (text, network):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=random)
    words = TextComponent(text.config, text.state_dict(), tokenizer)
    return PriorParts(Component(config, network.state_dict()), words, 2.0, spacing)


def with_own_prior(folder: Path) -> None:
    """Add a prior to a decoder's folder, as a folder of StableUnCLIPPipeline has it."""
    write_prior(random_prior("leading"), folder / "apart")
    (folder / "apart/prior").rename(folder / "prior")
    for name in ("text_encoder", "tokenizer"):
        (folder / "apart" / name).rename(folder / f"prior_{name}")
    (folder / "apart/prior_scheduler").rename(folder / "prior_scheduler")
    (folder / "apart").rmdir()


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    stage = VectorStatistics(VectorConfig(DIM))
    randomise(stage)
    own = replace(random_checkpoint(UNCLIP), cond_stage=Component(stage.config, stage.state_dict()))
    write_folder(own, module_path / "own")
    with_own_prior(module_path / "own")
    write_folder(seeing(random_checkpoint(UNCLIP), PictureConfig(EYE)), module_path / "unclip")
    silent = replace(random_checkpoint(SMALL["small-sd1"]), text=())
    write_folder(seeing(silent, PictureConfig(EYE, noised=False)), module_path / "variations")
    write_prior(random_prior(), module_path / "prior")
    return {path.name: path for path in module_path.iterdir()}


@pytest.fixture
def theirs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Image.Image]:
    """Pictures by StableUnCLIPPipeline from the folder with its own prior, with our noise."""

    def draw(level: int, **options: Any) -> Image.Image:
        own = folders["own"]
        parts = {
            "prior": diffusers.PriorTransformer.from_pretrained(own / "prior"),
            "prior_text_encoder": transformers.CLIPTextModelWithProjection.from_pretrained(
                own / "prior_text_encoder"
            ),
            "prior_tokenizer": transformers.CLIPTokenizer.from_pretrained(own / "prior_tokenizer"),
            "prior_scheduler": diffusers.DDPMScheduler.from_pretrained(own / "prior_scheduler"),
        }
        draws = [NoiseSource([mixed(SEED, -1)], (DIM,))()]
        pipe = their_pipeline(monkeypatch, own, "StableUnCLIPPipeline", draws, **parts)
        noise = NoiseSource([mixed(SEED, -2)], (DIM,))
        first = timesteps(PRIOR_STEPS, "leading")[0]
        alpha_bar = NoiseSchedule.from_betas(cosine_betas()).alphas_cumprod[first]
        # the noise of the first timestep, not one of unit variance
        start = noise() * (1 - alpha_bar).sqrt().float()
        module = type(pipe.prior_scheduler).__module__
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise())
        latents = NoiseSource([SEED], (4, SIDE // 2, SIDE // 2))()
        return pipe(
            num_inference_steps=STEPS, guidance_scale=4.0, latents=latents, width=SIDE, height=SIDE,
            noise_level=level, prior_num_inference_steps=PRIOR_STEPS, prior_guidance_scale=3.0, prior_latents=start,
            **options,
        ).images[0]  # fmt: skip

    return draw


@pytest.mark.parametrize("level", [0, 300])
def test_stable_unclip_draws_of_text(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], level: int
) -> None:
    words = {"prompt": "a red taxi", "negative_prompt": "rain"}
    wanted = theirs(level, **words)
    model = inkwash.load(folders["own"])
    made = model.text_to_image(**words, **OURS, noise_level=level)[0]
    assert psnr(made, wanted) >= 60
    other = model.text_to_image(**words, **OURS | {"prior_cfg_scale": 60.0}, noise_level=level)[0]
    assert psnr(other, wanted) < 50


@pytest.mark.parametrize("kind", ["KandinskyPriorPipeline", "KandinskyV22PriorPipeline"])
@torch.no_grad()
def test_vectors_are_those_of_kandinsky(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["prior"]
    scheduler = diffusers.UnCLIPScheduler.from_pretrained(folder / "prior_scheduler")
    pipe = getattr(diffusers, kind)(
        prior=diffusers.PriorTransformer.from_pretrained(folder / "prior"),
        image_encoder=transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                image_size=14, patch_size=14, projection_dim=DIM,
            )
        ),
        text_encoder=transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=scheduler,
        image_processor=transformers.CLIPImageProcessor(size=14, crop_size=14),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    noise = NoiseSource([mixed(SEED, -2)] * 2, (DIM,))
    start = noise()  # with a negative prompt there are two rows, the prompt's and its own
    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: noise())
    made = pipe("a red taxi", "rain", num_inference_steps=PRIOR_STEPS, guidance_scale=3.0, latents=start)
    ours = open_prior(folder)
    for text, wanted in (("a red taxi", made.image_embeds), ("rain", made.negative_image_embeds)):
        vector = ours([text], [SEED], PRIOR_STEPS, 3.0, ["rain"])
        torch.testing.assert_close(vector, wanted, rtol=1e-3, atol=5e-4)  # theirs has alphas in float32


def test_a_prior_of_its_own_folder_draws_with_any_decoder(folders: dict[str, Path]) -> None:
    """A decoder of text and vectors, and one of vectors alone, whose negative prompt the prior reads."""
    for name in ("unclip", "variations"):
        model = inkwash.load(folders[name], prior=folders["prior"])
        assert model.prior and model.prior.name == "prior"
        draw = model.text_to_image
        both = draw(("a taxi", "a book"), batch_size=2, **OURS)
        alone = draw("a book", **OURS | {"seed": SEED + 1})[0]
        assert psnr(both[1], alone) >= 60 and psnr(both[0], both[1]) < 50
        assert psnr(draw("a book", "rain", **OURS | {"seed": SEED + 1})[0], alone) < 50
        assert draw("a taxi", hires=1.5, hires_steps=2, **OURS)[0].size == (48, 48)
        of = recorded({RECIPE: json.loads(both[0].info[RECIPE])})
        assert of.prior == {"name": "prior", "hash": model.prior.hash}
        model.vary(PICTURES[0], steps=1)  # which needs no prior, and draws as before
        request = TextToImageRequest(prompt="a book", **OURS | {"seed": SEED + 1})
        assert denoising_strip(model, request, 2).width > SIDE
        thrifty = inkwash.load(folders[name], prior=folders["prior"], offload=True)
        assert thrifty.text_to_image("a book", **OURS | {"seed": SEED + 1})[0].tobytes() == alone.tobytes()


def test_timesteps_are_those_of_diffusers() -> None:
    for steps in (2, 7, 25):
        published = diffusers.UnCLIPScheduler()
        published.set_timesteps(steps)
        assert timesteps(steps, "linspace").tolist() == published.timesteps.tolist()
        for spacing in ("linspace", "leading", "trailing"):
            published = diffusers.DDPMScheduler(timestep_spacing=spacing)
            published.set_timesteps(steps)
            assert timesteps(steps, spacing).tolist() == published.timesteps.tolist()


def test_what_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prior .*: mini draws by words"):
        inkwash.load("mini", prior=folders["prior"]).text_to_image("a taxi")
    with pytest.raises(ValueError, match="prior_steps 6: mini draws without a prior"):
        inkwash.load("mini").text_to_image("a", prior_steps=6)
    with pytest.raises(ValueError, match=r"unclip sees CLIP's vectors, .* give one, or use vary"):
        inkwash.load(folders["unclip"]).text_to_image("a taxi")
    own = inkwash.load(folders["own"])
    with pytest.raises(ValueError, match="vary needs a model that sees what CLIP sees"):
        own.vary(PICTURES[0])
    with pytest.raises(
        ValueError, match=r"own needs the vector .*; use text_to_image \(`inkwash generate`\)"
    ):
        own.image_to_image("a taxi", PICTURES[0])
    write_prior(random_prior(dim=8), tmp_path / "narrow")
    model = inkwash.load(folders["variations"], prior=tmp_path / "narrow")
    with pytest.raises(ValueError, match="variations sees vectors of 64 numbers, and these have 8"):
        model.text_to_image("a taxi")
    with pytest.raises(ValueError, match="noise_level 3: variations is not told of noise"):
        inkwash.load(folders["variations"], prior=folders["prior"]).text_to_image("a", noise_level=3)
    with pytest.raises(ModelFileError, match="no layout as a single file"):
        convert(folders["own"], tmp_path / "one.safetensors", "single")
    scheduler = tmp_path / "narrow/prior_scheduler/scheduler_config.json"
    scheduler.write_text('{"_class_name": "HeunDiscreteScheduler"}')
    with pytest.raises(ModelFileError, match="prior_scheduler is HeunDiscreteScheduler"):
        open_prior(tmp_path / "narrow")
    (tmp_path / "narrow/model_index.json").write_text('{"_class_name": "KandinskyV22PriorPipeline"}')
    with pytest.raises(ModelFileError, match="is a prior, which draws nothing alone"):
        inkwash.load(tmp_path / "narrow")
    for kind in ("KandinskyV22Img2ImgPipeline", "KandinskyPipeline", "UnCLIPPipeline"):
        (tmp_path / "narrow/model_index.json").write_text(json.dumps({"_class_name": kind}))
        with pytest.raises(ModelFileError, match=f"narrow is a {kind}, whose decoder is not covered"):
            inkwash.load(tmp_path / "narrow")


def test_a_decoders_own_text_encoder_is_not_taken_for_the_priors(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    own = shutil.copytree(folders["own"], tmp_path / "own")
    index = json.loads((own / "model_index.json").read_text())
    index |= {"prior_text_encoder": ["transformers", "CLIPTextModelWithProjection"]}
    (own / "model_index.json").write_text(json.dumps(index))
    assert open_prior(own).hash == open_prior(folders["own"]).hash
    shutil.rmtree(own / "prior_text_encoder")
    with pytest.raises(
        ModelFileError, match="own has no prior_text_encoder, prior_tokenizer and prior_scheduler"
    ):
        open_prior(own)


def test_priors_are_described(folders: dict[str, Path]) -> None:
    alone, own = inspect(folders["prior"]), inspect(folders["own"])
    assert (alone["kind"], alone["evidence"]) == ("prior", [f"shapes: vectors of {DIM} numbers"])
    assert (own["kind"], own["keys"]["dropped"]) == ("checkpoint", 0)
    assert own["components"]["prior"] == alone["components"]["prior"]
    assert own["components"]["prior_text_encoder"] == alone["components"]["text_encoder"]
    with pytest.raises(ModelFileError, match="is a prior, which draws nothing alone"):
        inkwash.load(folders["prior"])


def test_a_folder_with_its_prior_is_written_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    convert(folders["own"], tmp_path / "own", "diffusers")
    a, b = tensors_of(folders["own"]), tensors_of(tmp_path / "own")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    drawn = [
        inkwash.load(path).text_to_image("a taxi", **OURS)[0] for path in (folders["own"], tmp_path / "own")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()


def test_the_command_line_draws_and_replays(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--steps", "2", "--seed", "1", "--prior-steps", "3"]
    prior = ["--prior", str(folders["prior"])]
    for name, more in (("own", []), ("variations", prior)):
        model = ["--model", str(folders[name])]
        assert main(["generate", "a taxi", *model, *more, *short, "--output", f"{name}.png"]) == 0
        if more:
            assert main(["replay", f"{name}.png", *model, "--output", "no.png"]) == 2
            assert "was made with prior; give its path by --prior" in capsys.readouterr().err
        assert main(["replay", f"{name}.png", *model, *more, "--output", f"{name}2.png"]) == 0
        assert Path(f"{name}.png").read_bytes() == Path(f"{name}2.png").read_bytes()
        assert np.asarray(Image.open(f"{name}.png")).std() > 0
    assert main(["generate", "a taxi", *prior, "--output", "no.png"]) == 2
    assert "draws by words" in capsys.readouterr().err
