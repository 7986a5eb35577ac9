"""A ControlNet union draws what diffusers' pipelines draw, by one hint or several: 60 dB and more; its laws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import inkwash
from inkwash.files import ModelFileError
from inkwash.models.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control, read_a1111
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from tests.pipeline.test_control_parity import OURS, PROMPTS, SEED, SIZE, THEIRS, matters, psnr
from tests.support.peers import their_pipeline
from tests.support.small_controls import (
    FAMILIES,
    SIDE,
    controlnet,
    first,
    picture,
    scaled,
    write_controlnet,
    write_model,
)

diffusers = pytest.importorskip("diffusers")
KIND = "StableDiffusionXLControlNetUnion{}Pipeline"


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    write_model("sdxl", module_path)
    config = ControlNetUnionConfig(replace(FAMILIES["sdxl"].unet, in_channels=4), num_types=8)
    network = scaled(ControlNetUnion(config), 5)
    for layout, name in (("folder", "net"), ("single", "net.safetensors")):
        write_component(Component(config, network.state_dict()), module_path / name, layout)
    return module_path


@pytest.fixture(scope="module")
def model(folder: Path) -> Pipeline:
    return inkwash.load(folder / "sdxl")


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(task: str, draws: list) -> Any:
        union = diffusers.ControlNetUnionModel.from_pretrained(folder / "net", local_files_only=True)
        return their_pipeline(monkeypatch, folder / "sdxl", KIND.format(task), draws, controlnet=union)

    return make


def control(folder: Path, seed: int = 0, **values: Any) -> Control:
    return Control(**{"file": folder / "net.safetensors", "image": picture(seed), **values})


def test_one_hint(folder: Path, model: Pipeline, theirs: Callable) -> None:
    options = {"controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.7}
    wanted = theirs("", [])(
        **THEIRS, **options, control_image=[picture()], control_mode=[1], latents=first(SEED)
    ).images[0]
    made = model.text_to_image(
        **PROMPTS, **OURS, controls=[control(folder, weight=0.8, end=0.7, type="depth")]
    )[0]
    assert psnr(made, wanted) >= 60
    assert matters(model, made)


def test_several_hints_at_once(folder: Path, model: Pipeline, theirs: Callable) -> None:
    wanted = theirs("", [])(
        **THEIRS,
        control_image=[picture(), picture(1), picture(2)],
        control_mode=[0, 3, 5],
        controlnet_conditioning_scale=[0.8, 0.4, 1.0],
        latents=first(SEED),
    ).images[0]
    controls = [
        control(folder, 0, weight=0.8, type="pose"),
        control(folder, 1, weight=0.4, type="line"),
        control(folder, 2, type="segmentation"),
    ]
    made, other = (
        model.text_to_image(**PROMPTS, **OURS, controls=each)[0] for each in (controls, controls[::-1])
    )
    assert psnr(made, wanted) >= 60
    assert made.tobytes() == other.tobytes()
    # a different interval is a call of its own
    apart = [*controls[:2], controls[2].model_copy(update={"end": 0.9})]
    assert model.text_to_image(**PROMPTS, **OURS, controls=apart)[0].tobytes() != made.tobytes()
    off = [*controls[:2], controls[2].model_copy(update={"weight": 0.0})]
    assert (
        model.text_to_image(**PROMPTS, **OURS, controls=off)[0].tobytes()
        == model.text_to_image(**PROMPTS, **OURS, controls=controls[:2])[0].tobytes()
    )


def test_guess_mode(folder: Path, model: Pipeline, theirs: Callable) -> None:
    """Unguided, since theirs with guidance fails: it embeds two rows of types for one of the picture."""
    options = THEIRS | {"guidance_scale": 1.0, "guess_mode": True}
    wanted = theirs("", [])(
        **options, control_image=[picture()], control_mode=[2], latents=first(SEED)
    ).images[0]
    controls = [control(folder, mode="guess", type="soft")]
    made = model.text_to_image(**PROMPTS, **OURS | {"cfg_scale": 1}, controls=controls)[0]
    assert psnr(made, wanted) >= 60


def test_image_to_image(folder: Path, model: Pipeline, theirs: Callable) -> None:
    options = {"strength": 0.7, "controlnet_conditioning_scale": 1.0}
    wanted = theirs("Img2Img", [first(SEED)])(
        **THEIRS, image=picture(), control_image=[picture(1)], control_mode=[6], **options
    ).images[0]
    made = model.image_to_image(
        image=picture(),
        **PROMPTS,
        **OURS,
        strength=0.7,
        step_rule="diffusers",
        controls=[control(folder, 1, type="tile")],
    )[0]
    assert psnr(made, wanted) >= 60


def test_inpaint(folder: Path, model: Pipeline, theirs: Callable) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 16, 48, 40))
    options = {"strength": 0.8, "mask_image": mask, "controlnet_conditioning_scale": 0.6}
    wanted = theirs("Inpaint", [first(SEED)])(
        **THEIRS, **SIZE, image=picture(), control_image=[picture(1)], control_mode=[7], **options
    ).images[0]
    ours = OURS | {"strength": 0.8, "step_rule": "diffusers", "mask_blur": 0}
    made = model.inpaint(
        image=picture(),
        mask=mask,
        **PROMPTS,
        **ours,
        controls=[control(folder, 1, weight=0.6, type="inpaint")],
    )[0]
    assert psnr(made, wanted, mask) >= 60


def test_the_type_follows_from_what_makes_the_hint(folder: Path, model: Pipeline) -> None:
    said, followed = (
        model.text_to_image(**PROMPTS, **OURS, controls=[control(folder, annotator="canny", type=name)])[0]
        for name in ("line", "auto")
    )
    assert said.tobytes() == followed.tobytes()
    with pytest.raises(
        ModelFileError, match="net.safetensors is a union, whose hint is of no type; give type="
    ):
        model.text_to_image(**PROMPTS, **OURS, controls=[control(folder)])


def test_a_type_that_it_does_not_know(folder: Path, model: Pipeline, tmp_path: Path) -> None:
    config = ControlNetUnionConfig(replace(FAMILIES["sdxl"].unet, in_channels=4), num_types=6)
    path = tmp_path / "six.safetensors"
    write_component(Component(config, scaled(ControlNetUnion(config), 5).state_dict()), path, "single")
    with pytest.raises(ModelFileError, match="six.safetensors is a union, which knows no hints of type=tile"):
        model.text_to_image(**PROMPTS, **OURS, controls=[control(folder, file=path, type="tile")])


def test_a_type_is_for_unions_alone(folder: Path, model: Pipeline, tmp_path: Path) -> None:
    path = write_controlnet(controlnet("sdxl"), tmp_path / "plain.safetensors")
    for file, name in ((path, "plain.safetensors"), ("reference_only", "reference_only")):
        with pytest.raises(
            ModelFileError, match=f"{name} is not a ControlNet union, so it takes no type=tile"
        ):
            model.text_to_image(**PROMPTS, **OURS, controls=[control(folder, file=file, type="tile")])


def test_a_picture_of_a_batch_is_the_one_drawn_alone(folder: Path, model: Pipeline) -> None:
    controls = [control(folder, 0, type="pose"), control(folder, 1, weight=0.5, type="line")]
    batch = model.text_to_image(**PROMPTS, **OURS, controls=controls, batch_size=2)[1]
    alone = model.text_to_image(**PROMPTS, **OURS | {"seed": SEED + 1}, controls=controls)[0]
    assert psnr(batch, alone) >= 60


def test_a1111s_text(folder: Path, model: Pipeline) -> None:
    image = model.text_to_image(**PROMPTS, **OURS, controls=[control(folder, type="normal")])[0]
    text = parse_parameters(image.info["parameters"])[2]["ControlNet 0"]
    assert text.endswith("Union Control Type: Normal Map") and read_a1111(text)["type"] == "normal"
    assert torch.is_grad_enabled()  # drawing leaves it as it was
