"""Controls draw what diffusers' pipelines draw, with the same random weights, noise and noise levels: 60 dB and more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.adapters.image_projections import FullProjection, Projection, Resampler
from inkwash.adapters.ip_adapter import IPAdapter, Layer, attentions
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from inkwash.weights.checkpoint import Component
from inkwash.weights.configs.t2i_adapter import t2i_adapter_json
from inkwash.weights.models.component import write_component
from tests.models.test_unet import randomise
from tests.support import small_controls as support
from tests.support.peers import their_pipeline
from tests.support.small_controls import (
    SIDE,
    controlnet,
    first,
    picture,
    scaled,
    write_controlnet,
    write_model,
)

diffusers = pytest.importorskip("diffusers")
STEPS, SEED = 6, 3
OURS = {"steps": STEPS, "seed": SEED, "sampler": "euler", "schedule": "uniform", "cfg_scale": 4}
PROMPTS = {"prompt": "a red taxi in the rain", "negative_prompt": "blurry"}
THEIRS = PROMPTS | {"num_inference_steps": STEPS, "guidance_scale": 4.0}
SIZE = {"width": SIDE, "height": SIDE}


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    for name in support.FAMILIES:
        write_model(name, module_path)
        for k, seed in enumerate((5, 6)):
            write_controlnet(controlnet(name, seed), module_path / f"{name}-{k}", "folder")
            write_controlnet(controlnet(name, seed), module_path / f"{name}-{k}.safetensors")
    return module_path


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A pipeline of diffusers, its random numbers replaced by these draws, its posteriors by their means."""

    def make(kind: str, name: str, draws: list, **parts: Any) -> Any:
        return their_pipeline(monkeypatch, folder / name, kind, draws, **parts)

    return make


def net(folder: Path, name: str, k: int = 0) -> Any:
    return diffusers.ControlNetModel.from_pretrained(folder / f"{name}-{k}", local_files_only=True)


def psnr(ours: Image.Image, theirs: Image.Image, where: Image.Image | None = None) -> float:
    assert ours.size == theirs.size
    a, b = (np.asarray(image, dtype=float) for image in (ours, theirs))
    inside = np.ones(a.shape[:2], bool) if where is None else np.asarray(where) > 127
    return 10 * np.log10(255**2 / max(np.square(a - b)[inside].mean(), 1e-9))


def matters(model: Pipeline, made: Image.Image, **options: Any) -> bool:
    """Return True if the control changed the picture, without which a comparison says nothing."""
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


@pytest.mark.parametrize("name", ["sd1", "inpainting", "sdxl"])
def test_inpaint(folder: Path, theirs: Callable, name: str) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 16, 48, 40))
    xl = "XL" if name == "sdxl" else ""
    kind = f"StableDiffusion{xl}ControlNetInpaintPipeline"
    pipe = theirs(kind, name, [first(SEED)], controlnet=net(folder, name))
    options = {"strength": 0.8, "mask_image": mask, "controlnet_conditioning_scale": 0.6}
    wanted = pipe(**THEIRS, **SIZE, image=picture(), control_image=picture(1), **options).images[0]
    control = Control(file=folder / f"{name}-0.safetensors", image=picture(1), weight=0.6)
    ours = OURS | {"strength": 0.8, "step_rule": "diffusers", "mask_blur": 0, "controls": [control]}
    made = inkwash.load(folder / name).inpaint(image=picture(), mask=mask, **PROMPTS, **ours)[0]
    assert psnr(made, wanted, mask) >= 60


def test_an_inpainting_hint_has_a_hole(folder: Path, theirs: Callable) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 16, 48, 40))
    hint = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float() / 255
    hint[:, :, 16:40, 16:48] = -1
    pipe = theirs(
        "StableDiffusionControlNetInpaintPipeline", "sd1", [first(SEED)], controlnet=net(folder, "sd1")
    )
    options = {"strength": 0.8, "mask_image": mask, "controlnet_conditioning_scale": 1.0}
    wanted = pipe(**THEIRS, **SIZE, image=picture(), control_image=hint, **options).images[0]
    model = inkwash.load(folder / "sd1")
    ours = OURS | {"strength": 0.8, "step_rule": "diffusers", "mask_blur": 0}

    def drawn(annotator: str, image: Image.Image | None = None) -> Image.Image:
        control = Control(file=folder / "sd1-0.safetensors", image=image, annotator=annotator)
        return model.inpaint(image=picture(), mask=mask, **PROMPTS, **ours, controls=[control])[0]

    made = drawn("inpaint")
    assert psnr(made, wanted, mask) >= 60
    assert made.tobytes() == drawn("inpaint", picture()).tobytes() != drawn("none").tobytes()
    with pytest.raises(ValueError, match="annotator=inpaint needs the mask of inpaint or outpaint"):
        control = Control(file=folder / "sd1-0.safetensors", image=picture(), annotator="inpaint")
        model.text_to_image(**PROMPTS, **OURS, controls=[control])


T2I = {
    "sd1": T2IAdapterConfig((64, 128, 128)),
    "sd1, light, grey": T2IAdapterConfig((64, 128, 128), hint_channels=1, light=True),
    "sdxl": T2IAdapterConfig((64, 128, 128, 128), factor=16),
}


@pytest.mark.parametrize("name", T2I)
def test_t2i_adapter(folder: Path, theirs: Callable, tmp_path: Path, name: str) -> None:
    config, family = T2I[name], name.split(",")[0]
    network = scaled(T2IAdapter(config), 4)
    write_component(Component(config, network.state_dict()), tmp_path / "folder", "folder")
    part = diffusers.T2IAdapter(**{k: v for k, v in t2i_adapter_json(config).items() if k != "_class_name"})
    part.load_state_dict(load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors"))
    kind = "StableDiffusionXLAdapterPipeline" if family == "sdxl" else "StableDiffusionAdapterPipeline"
    pipe = theirs(kind, family, [], adapter=part)
    image = picture() if config.hint_channels == 3 else picture().convert("L")
    extra = {"adapter_conditioning_factor": 0.5} if family == "sdxl" else {}
    wanted = pipe(
        **THEIRS, **SIZE, image=image, latents=first(SEED), adapter_conditioning_scale=0.7, **extra
    ).images[0]
    model = inkwash.load(folder / family)
    control = Control(file=tmp_path / "folder", image=image, weight=0.7, end=0.5 if extra else 1)
    made = model.text_to_image(**PROMPTS, **OURS, controls=[control])[0]
    assert psnr(made, wanted) >= 60
    assert matters(model, made)


EYE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
EYE |= {"image_size": 28, "patch_size": 14, "projection_dim": 24, "hidden_act": "gelu"}


def ip_tensors(model: Pipeline, kind: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter for a model, under the names of the published files."""
    width = model.unet.config.context_dim
    seen = EYE["projection_dim"] if kind == "plain" else EYE["hidden_size"]
    project = {
        "plain": lambda: Projection(seen, width, 4),
        "full": lambda: FullProjection(seen, width),
        "plus": lambda: Resampler(seen, width, hidden=64, inner=128, depth=4, num_tokens=5, feed=256),
    }[kind]
    layers = {
        str(2 * i + 1): Layer(width, each.to_q.out_features) for i, each in enumerate(attentions(model.unet))
    }
    return scaled(IPAdapter(project(), layers), 8).state_dict()


def write_ip_adapter(model: Pipeline, kind: str, folder: Path) -> dict[str, Any]:
    """An adapter's file in both forms and the tower beside it; what diffusers takes of the tower."""
    transformers = pytest.importorskip("transformers")
    tensors = {key: value.clone() for key, value in ip_tensors(model, kind).items()}
    save_file(tensors, folder / "adapter.safetensors")
    parts = {
        part: {key[len(part) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    torch.save(parts, folder / "adapter.bin")
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**EYE))
    randomise(vision, seed=2)
    vision.eval().save_pretrained(folder / "image_encoder")
    eye = {"do_resize": True, "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return {"image_encoder": vision, "feature_extractor": transformers.CLIPImageProcessor(**eye)}


def see_by(pipe: Any, folder: Path) -> Any:
    pipe.load_ip_adapter(
        str(folder), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale(0.6)
    return pipe


@pytest.mark.parametrize(
    ("family", "kind"), [("sd1", "plain"), ("sd1", "full"), ("sd1", "plus"), ("sdxl", "plus")]
)
def test_ip_adapter(folder: Path, theirs: Callable, tmp_path: Path, family: str, kind: str) -> None:
    model = inkwash.load(folder / family)
    parts = write_ip_adapter(model, kind, tmp_path)
    kind = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    pipe = see_by(theirs(kind, family, [], **parts), tmp_path)
    wanted = pipe(**THEIRS, **SIZE, ip_adapter_image=picture(), latents=first(SEED)).images[0]
    for name in ("adapter.safetensors", "adapter.bin"):
        control = Control(file=tmp_path / name, image=picture(), weight=0.6)
        made = model.text_to_image(**PROMPTS, **OURS, controls=[control])[0]
        assert psnr(made, wanted) >= 60
    assert matters(model, made)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_ip_adapter_where_a_picture_is_changed(
    folder: Path, theirs: Callable, tmp_path: Path, family: str, task: str
) -> None:
    model = inkwash.load(folder / family)
    parts = write_ip_adapter(model, "plain", tmp_path)
    kind = f"StableDiffusion{'XL' if family == 'sdxl' else ''}{task}Pipeline"
    pipe = see_by(theirs(kind, family, [first(SEED)], **parts), tmp_path)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 16, 48, 40))
    more = {"mask_image": mask, **SIZE} if task == "Inpaint" else {}
    wanted = pipe(**THEIRS, image=picture(), strength=0.7, ip_adapter_image=picture(1), **more).images[0]
    control = Control(file=tmp_path / "adapter.safetensors", image=picture(1), weight=0.6)
    ours = PROMPTS | OURS | {"strength": 0.7, "step_rule": "diffusers", "controls": [control]}
    if task == "Inpaint":
        made = model.inpaint(image=picture(), mask=mask, mask_blur=0, **ours)[0]
    else:
        made = model.image_to_image(image=picture(), **ours)[0]
    assert psnr(made, wanted, mask if more else None) >= 60


def test_a_file_of_differences(folder: Path, tmp_path: Path) -> None:
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
