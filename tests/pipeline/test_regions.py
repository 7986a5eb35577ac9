"""Prompts for parts of a picture: what each part is drawn by, what is recorded of them, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.denoising.regions import span
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import again, recorded
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest
from tests.support.small_controls import controlnet, write_controlnet, write_model
from tests.support.small_controls import picture as hint
from tests.support.tiny_models import MASK, PICTURE, variants

OPTIONS = {"steps": 3, "seed": 4, "cfg_scale": 3}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny, dtype="fp32")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_region_that_is_all_of_the_picture_is_its_prompt(model: Pipeline) -> None:
    (plain,) = model.text_to_image("a (red:1.3) taxi AND [cat:dog:0.5]", **OPTIONS)
    (region,) = model.text_to_image(
        "a house", regions=["0,0,1,1=a (red:1.3) taxi AND [cat:dog:0.5]"], **OPTIONS
    )
    assert np.abs(pixels(plain) - pixels(region)).max() <= 1


def test_pictures_of_a_batch_are_those_drawn_alone(model: Pipeline) -> None:
    given = {"regions": [(0, 0, 0.5, 1, "a taxi"), (0.5, 0, 1, 1, "a cat")], "width": 64}
    made = model.text_to_image(("a", "b"), batch_size=2, **OPTIONS, **given)
    for k, prompt in enumerate("ab"):
        (alone,) = model.text_to_image(prompt, **(OPTIONS | {"seed": OPTIONS["seed"] + k}), **given)
        assert np.abs(pixels(made[k]) - pixels(alone)).max() <= 1


def predicted(model: Pipeline, **given: Any) -> torch.Tensor:
    """What the first step predicts, (C, H, W)."""
    request = TextToImageRequest(prompt="a house", cfg_scale=3, seed=4, **given)
    with torch.inference_mode():
        D, sigmas, x, _ = start(model, resolve(model, request))
        return D(x, sigmas[:1].float())[0]


def test_a_text_changes_its_own_region_alone(model: Pipeline) -> None:
    def draw(left: str) -> torch.Tensor:
        return predicted(model, regions=[(0, 0, 0.5, 1, left), (0.5, 0, 1, 1, "a cat")], width=128, height=32)

    changed = (draw("a taxi") != draw("a rocket")).any(0).any(0)
    assert changed[:32].all() and not changed[32:].any()


@pytest.mark.parametrize(
    ("start", "end", "size", "wanted"),
    [
        (0.3333, 0.6667, 48, slice(16, 32)),
        (0, 1, 7, slice(0, 7)),
        (0.49, 0.51, 4, slice(2, 3)),
        (0.99, 1, 4, slice(3, 4)),
    ],
)
def test_edges_lie_at_the_nearest_places(start: float, end: float, size: int, wanted: slice) -> None:
    assert span(start, end, size) == wanted


def test_a_picture_is_drawn_again_from_its_recipe_and_from_its_text(model: Pipeline) -> None:
    regions = [(0, 0, 0.5, 1, "a taxi, yellow; new"), (0.25, 0.5, 1, 1, "a cat")]
    (made,) = model.text_to_image("a house", regions=regions, **OPTIONS)
    assert 'Regions: "0,0,0.5,1=a taxi, yellow; new; 0.25,0.5,1,1=a cat"' in made.info["parameters"]
    text = {"parameters": made.info["parameters"]}
    for kept in (text, text | {RECIPE: json.loads(made.info[RECIPE])}):
        known = recorded(kept)
        assert known.request.regions == tuple(regions) and not known.not_applied
        drawn = again(model, known, {})
        assert np.array_equal(pixels(made), pixels(drawn))


def test_two_passes_and_windows_draw_the_same_parts(model: Pipeline) -> None:
    regions = [(0, 0, 0.5, 1, "a taxi"), (0.5, 0, 1, 1, "a cat")]
    (large,) = model.text_to_image("a", regions=regions, hires=2, **OPTIONS)
    assert large.size == (64, 64)
    (windowed,) = model.text_to_image("a", regions=regions, width=128, window=32, **OPTIONS)
    (whole,) = model.text_to_image("a", regions=regions, width=128, **OPTIONS)
    assert not np.array_equal(pixels(windowed), pixels(whole))


def test_what_is_seen_beside_the_latent_is_cut_to_the_region(tiny: Path) -> None:
    regions = ["0,0,0.5,1=a taxi"]
    (made,) = variants(tiny)["inpainting"].inpaint("a house", PICTURE, MASK, regions=regions, **OPTIONS)
    assert made.size == PICTURE.size


def test_controls_steer_regions_by_their_part_of_the_hint(module_path: Path) -> None:
    model = inkwash.load(write_model("sd1", module_path), dtype="fp32")
    write_controlnet(controlnet("sd1"), module_path / "net.safetensors")
    left, right = hint(0), hint(1)
    right.paste(left.crop((0, 0, 32, 64)))  # differs in its right half alone

    def draw(image: Image.Image) -> torch.Tensor:
        control = Control(file=module_path / "net.safetensors", image=image, annotator="none")
        regions = [(0, 0, 0.5, 1, "a taxi"), (0.5, 0, 1, 1, "a cat")]
        return predicted(model, controls=[control], regions=regions, width=64, height=64)

    changed = (draw(left) != draw(right)).any(0).any(0)
    assert changed[4:].all() and not changed[:4].any()


def test_adapters_in_a_region_are_words(model: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model.text_to_image("a", regions=["0,0,0.5,1=a cat <lora:style:1>"], steps=1)
    assert ["LoRAs in a region" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regions": ["0,0,2,1=a cat"]}, "is not a box"),
        ({"regions": ["0,0,1,1="]}, "is not a box"),
        ({"regions": [(0.5, 0, 0.5, 1, "a cat")]}, "coordinates must be in 0..1"),
        ({"regions": ["0,0,1,1=a cat"] * 17}, "at most 16"),
        ({"regions": ["0,0,1,1=a cat"], "seamless": "x"}, "give them without seamless"),
    ],
)
def test_what_is_refused(model: Pipeline, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.text_to_image("a", steps=1, **given)


def test_regions_are_of_the_whole_picture(model: Pipeline) -> None:
    regions = ["0,0,1,1=a cat"]
    with pytest.raises(ValueError, match="give them without tile"):
        model.image_to_image("a", PICTURE, steps=1, tile=128, regions=regions)
    with pytest.raises(ValueError, match="give them without only_masked"):
        model.inpaint("a", PICTURE, MASK, steps=1, only_masked=True, regions=regions)


def test_models_without_text_take_none(tiny: Path) -> None:
    with pytest.raises(ValueError, match="sees no text; give no regions"):
        variants(tiny)["classes"].text_to_image("", steps=1, class_label=0, regions=["0,0,1,1=a cat"])
