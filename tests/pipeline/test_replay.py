"""A picture holds what it takes to draw it again, whatever way it was drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import again, recorded
from inkwash.pipeline.tasks import TASKS as KNOWN
from tests.support.tiny_models import BOTH, PICTURE, WAYS, variants


@pytest.fixture(scope="module")
def models(tiny: Path) -> dict[str, Pipeline]:
    return variants(tiny)


OPTIONS = {"steps": 2, "seed": 4, "batch_size": 2, "sampler": "dpmpp_2m_sde", "cfg_scale": 3}


@pytest.mark.parametrize("name", WAYS)
def test_a_picture_of_a_batch_is_drawn_again_to_the_byte(models: dict[str, Pipeline], name: str) -> None:
    way = WAYS[name]
    image = way.draw(models[way.variant], **OPTIONS)[1]
    known = recorded({RECIPE: json.loads(image.info[RECIPE])})
    assert known.given.keys() == way.pictures.keys()
    made = again(models[way.variant], known, way.pictures)
    assert made.tobytes() == image.tobytes() and made.info == image.info


def test_every_way_is_among_them(models: dict[str, Pipeline]) -> None:
    drawn = (way.draw(models[way.variant], steps=1)[0] for way in WAYS.values())
    assert {json.loads(image.info[RECIPE])["task"] for image in drawn} == KNOWN.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.fromarray(np.asarray(image) ^ np.uint8(1)),
        lambda image: image.crop((0, 0, *image.size[::-1])),
        lambda image: image.convert("RGBA" if image.mode == "RGB" else "RGB"),
    ],
)
@pytest.mark.parametrize("role", ["image", "mask"])
def test_another_picture_is_refused(models: dict[str, Pipeline], role: str, change) -> None:
    image = models["plain"].inpaint("a taxi", BOTH["image"], BOTH["mask"], steps=1)[0]
    known = recorded({RECIPE: json.loads(image.info[RECIPE])})
    with pytest.raises(
        ValueError, match=f"this {role} is not the one that it was made from: (size|mode|sha256)"
    ):
        again(models["plain"], known, BOTH | {role: change(BOTH[role])})


def test_recipes_that_cannot_be_followed(models: dict[str, Pipeline]) -> None:
    recipe = json.loads(models["plain"].image_to_image("a taxi", PICTURE, steps=1)[0].info[RECIPE])
    for change, message in (
        ({"task": "sculpt"}, "made by the task sculpt, which this version"),
        ({"given": {}}, "does not say from which image"),
        ({"given": {"image": 3}}, "damaged"),
        ({"given": []}, "damaged"),
        ({"request": None}, "damaged"),
        ({"picture": "x"}, "invalid literal"),
    ):
        with pytest.raises(ValueError, match=message):
            recorded({RECIPE: recipe | change})
