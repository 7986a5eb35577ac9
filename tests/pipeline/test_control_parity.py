"""Controls draw what diffusers' pipelines draw, with the same random weights, noise and noise levels: 60 dB and more."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from tests.support import small_controls as support
from tests.support.small_controls import SIDE, controlnet, first, picture, write_controlnet, write_model

diffusers = pytest.importorskip("diffusers")
STEPS, SEED = 6, 3
OURS = {"steps": STEPS, "seed": SEED, "sampler": "euler", "schedule": "uniform", "cfg_scale": 4}
PROMPTS = {"prompt": "a red taxi in the rain", "negative_prompt": "blurry"}
THEIRS = PROMPTS | {"num_inference_steps": STEPS, "guidance_scale": 4.0}
SIZE = {"width": SIDE, "height": SIDE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlled")
    for name in support.FAMILIES:
        write_model(name, folder)
        for k, seed in enumerate((5, 6)):
            write_controlnet(controlnet(name, seed), folder / f"{name}-{k}", "folder")
            write_controlnet(controlnet(name, seed), folder / f"{name}-{k}.safetensors")
    return folder


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A pipeline of diffusers, its random numbers replaced by these draws, its posteriors by their means."""

    def make(kind: str, name: str, draws: list, **parts: Any) -> Any:
        of = getattr(diffusers, kind)
        pipe = of.from_pretrained(folder / name, local_files_only=True, **parts)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0
        )
        module = sys.modules[of.__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draws.pop(0))
        if hasattr(module, "retrieve_latents"):
            monkeypatch.setattr(module, "retrieve_latents", lambda made, *_, **__: made.latent_dist.mode())
        return pipe

    return make


def net(folder: Path, name: str, k: int = 0) -> Any:
    return diffusers.ControlNetModel.from_pretrained(folder / f"{name}-{k}", local_files_only=True)


def psnr(ours: Image.Image, theirs: Image.Image, where: Image.Image | None = None) -> float:
    assert ours.size == theirs.size
    a, b = (np.asarray(image, dtype=float) for image in (ours, theirs))
    inside = np.ones(a.shape[:2], bool) if where is None else np.asarray(where) > 127
    return 10 * np.log10(255**2 / max(np.square(a - b)[inside].mean(), 1e-9))


def matters(model: Pipeline, made: Image.Image, **options: Any) -> bool:
    """Whether the control changed the picture, so that the comparison says something."""
    return psnr(made, model.text_to_image(**PROMPTS, **OURS, **options)[0]) < 35


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_text_to_image(folder: Path, theirs: Callable, name: str) -> None:
    kind = "StableDiffusionXLControlNetPipeline" if name == "sdxl" else "StableDiffusionControlNetPipeline"
    pipe = theirs(kind, name, [], controlnet=net(folder, name))
    options = {"controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.7}
    wanted = pipe(**THEIRS, **options, image=picture(), latents=first(SEED)).images[0]
    model = inkwash.load(folder / name)
    control = Control(file=folder / f"{name}-0.safetensors", image=picture(), weight=0.8, end=0.7)
    made = model.text_to_image(**PROMPTS, **OURS, controls=[control])[0]
    assert psnr(made, wanted) >= 60
    assert matters(model, made)


def test_a_folder_and_a_file_are_the_same(folder: Path) -> None:
    model = inkwash.load(folder / "sd1")
    a, b = (
        model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=folder / name, image=picture())])[0]
        for name in ("sd1-0", "sd1-0.safetensors")
    )
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_guess_mode(folder: Path, theirs: Callable, start: float) -> None:
    pipe = theirs("StableDiffusionControlNetPipeline", "sd1", [], controlnet=net(folder, "sd1"))
    wanted = pipe(
        **THEIRS, guess_mode=True, control_guidance_start=start, image=picture(), latents=first(SEED)
    ).images[0]
    control = Control(file=folder / "sd1-0.safetensors", image=picture(), mode="guess", start=start)
    made = inkwash.load(folder / "sd1").text_to_image(**PROMPTS, **OURS, controls=[control])[0]
    assert psnr(made, wanted) >= 60


def test_one_whose_residuals_are_pooled(folder: Path, theirs: Callable, tmp_path: Path) -> None:
    pooled = controlnet("sd1", 7, global_pool=True)
    write_controlnet(pooled, tmp_path / "folder", "folder")
    write_controlnet(pooled, tmp_path / "control_shuffle.safetensors")
    part = diffusers.ControlNetModel.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipe = theirs("StableDiffusionControlNetPipeline", "sd1", [], controlnet=part)
    wanted = pipe(**THEIRS, image=picture(), latents=first(SEED)).images[0]
    model = inkwash.load(folder / "sd1")
    for name in ("folder", "control_shuffle.safetensors"):
        control = Control(file=tmp_path / name, image=picture())
        assert psnr(model.text_to_image(**PROMPTS, **OURS, controls=[control])[0], wanted) >= 60


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_several(folder: Path, theirs: Callable, name: str) -> None:
    kind = "StableDiffusionXLControlNetPipeline" if name == "sdxl" else "StableDiffusionControlNetPipeline"
    pipe = theirs(kind, name, [], controlnet=[net(folder, name, k) for k in (0, 1)])
    options = {
        "controlnet_conditioning_scale": [0.8, 0.4],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.5, 1.0],
    }
    wanted = pipe(**THEIRS, **options, image=[picture(), picture(1)], latents=first(SEED)).images[0]
    controls = [
        Control(file=folder / f"{name}-0.safetensors", image=picture(), weight=0.8, end=0.5),
        Control(file=folder / f"{name}-1.safetensors", image=picture(1), weight=0.4, start=0.3),
    ]
    made = inkwash.load(folder / name).text_to_image(**PROMPTS, **OURS, controls=controls)[0]
    assert psnr(made, wanted) >= 60


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_image_to_image(folder: Path, theirs: Callable, name: str) -> None:
    kind = "StableDiffusionXLControlNetImg2Img" if name == "sdxl" else "StableDiffusionControlNetImg2Img"
    pipe = theirs(f"{kind}Pipeline", name, [first(SEED)], controlnet=net(folder, name))
    options = {"strength": 0.7, "controlnet_conditioning_scale": 1.0}
    wanted = pipe(**THEIRS, image=picture(), control_image=picture(1), **options).images[0]
    control = Control(file=folder / f"{name}-0.safetensors", image=picture(1))
    made = inkwash.load(folder / name).image_to_image(
        image=picture(), **PROMPTS, **OURS, strength=0.7, step_rule="diffusers", controls=[control]
    )[0]
    assert psnr(made, wanted) >= 60


@pytest.mark.parametrize("name", ["sd1", "inpainting"])
def test_inpaint(folder: Path, theirs: Callable, name: str) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 16, 48, 40))
    kind = "StableDiffusionControlNetInpaintPipeline"
    pipe = theirs(kind, name, [first(SEED)], controlnet=net(folder, name))
    options = {"strength": 0.8, "mask_image": mask, "controlnet_conditioning_scale": 0.6}
    wanted = pipe(**THEIRS, **SIZE, image=picture(), control_image=picture(1), **options).images[0]
    control = Control(file=folder / f"{name}-0.safetensors", image=picture(1), weight=0.6)
    ours = OURS | {"strength": 0.8, "step_rule": "diffusers", "mask_blur": 0, "controls": [control]}
    made = inkwash.load(folder / name).inpaint(image=picture(), mask=mask, **PROMPTS, **ours)[0]
    assert psnr(made, wanted, mask) >= 60


def test_a_file_of_differences(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = inkwash.load(folder / "sd1")
    base, tensors = model.unet.state_dict(), load_file(folder / "sd1-0.safetensors")
    apart = {}
    for name, value in tensors.items():
        own = base.get(name.removeprefix("control_model."))
        apart[name] = (value.double() - own.double()).float() if own is not None else value
    save_file(apart | {"difference": torch.zeros(1)}, tmp_path / "apart.safetensors")
    a, b = (
        model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=path, image=picture())])[0]
        for path in (folder / "sd1-0.safetensors", tmp_path / "apart.safetensors")
    )
    assert psnr(a, b) >= 55 and len(apart.keys() & tensors.keys()) == len(tensors)
