"""Files that are shipped beside the models are found by name: the control of edges and the LoRA of few steps."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import inkwash
from inkwash.cli.loading import FolderOptions
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.control import open_network
from inkwash.weights.bytes.paths import SHIPPED_CONTROLS, SHIPPED_LORAS, control_path, shipped_lora

PROMPT = "a rocket, twemoji style"


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return inkwash.load("mini")


def test_everything_that_is_named_is_there(mini: Pipeline) -> None:
    for name, folder in SHIPPED_CONTROLS.items():
        path = control_path(name)
        assert (
            next(place for place in (path, path.parent) if place.name == folder)
            .joinpath("README.md")
            .is_file()
        )
        open_network(path, mini)
    for name in SHIPPED_LORAS:
        path = shipped_lora(name)
        assert path and path.with_name("README.md").is_file()
    assert shipped_lora("another") is None


def test_a_lora_by_name_on_the_command_line() -> None:
    options = FolderOptions(lora=("mini-turbo:0.5",))
    assert options.files == [(shipped_lora("mini-turbo"), "0.5")] and options.tags == "<lora:mini-turbo:0.5>"


def test_four_steps_draw_what_twenty_do(mini: Pipeline) -> None:
    def pixels(image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("L"), dtype=np.float64).ravel()

    (long,) = mini.text_to_image(PROMPT, steps=20, cfg_scale=5, seed=3)
    (short,) = mini.text_to_image(f"{PROMPT} <lora:mini-turbo:1>", preset="lightning", steps=4, seed=3)
    (without,) = mini.text_to_image(PROMPT, preset="lightning", steps=4, seed=3)
    assert np.corrcoef(pixels(long), pixels(short))[0, 1] > 0.9
    sharp, soft = (np.abs(np.diff(pixels(image))).mean() for image in (short, without))
    assert sharp > 1.1 * soft  # which is as near, but washed out

    saved = BytesIO()
    short.save(saved, "PNG")
    assert "mini-turbo" in Image.open(saved).info["parameters"]
