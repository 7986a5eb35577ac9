"""Controls whose hints are made of a photo, and the one that is shipped, by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import inkwash
from inkwash.annotators import ANNOTATORS
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Annotators, Control, read_a1111, read_control
from inkwash.pipeline.denoising.annotating import is_line_map
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.weights.bytes import paths
from tests.support.small_controls import picture, write_controlnet
from tests.support.tiny_models import drawn_at_random

OPTIONS = {"steps": 2, "seed": 4, "cfg_scale": 3}
LARGE = picture().resize((128, 128), Image.Resampling.NEAREST)  # the hint's size


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture
def shipped(model: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the package's models, which holds a control of edges."""
    network = drawn_at_random(ControlNet(ControlNetConfig(model.unet.config)))
    folder = write_controlnet(network, tmp_path / "mini-canny", "diffusers")
    monkeypatch.setattr(paths, "files", lambda package: tmp_path)
    return folder


def draw(model: Pipeline, control: Control | str) -> Image.Image:
    return model.text_to_image("a taxi", controls=[control], **OPTIONS)[0]


def test_a_photo_gives_the_picture_that_its_edges_give(
    model: Pipeline, shipped: Path, tmp_path: Path
) -> None:
    edges = annotate("canny", LARGE)
    assert len(np.unique(edges)) == 2
    photo, hint, file = (
        draw(model, Control(file=file, image=image)).tobytes()
        for file, image in (("canny", LARGE), ("canny", edges), (str(shipped), edges))
    )
    assert photo == hint == file
    assert draw(model, Control(file="canny", image=LARGE, annotator="none")).tobytes() != photo
    assert draw(model, Control(file=str(shipped), image=LARGE)).tobytes() != photo
    assert draw(model, Control(file=str(shipped), image=LARGE, annotator="canny")).tobytes() == photo
    LARGE.save(tmp_path / "photo.png")
    assert draw(model, f"canny={tmp_path / 'photo.png'}").tobytes() == photo
    assert draw(model, f"{shipped}={tmp_path / 'photo.png'}:annotator=canny").tobytes() == photo


def test_edges_are_found_at_the_size_that_is_drawn(model: Pipeline, shipped: Path) -> None:
    huge = LARGE.resize((512, 512), Image.Resampling.BICUBIC)
    small = huge.resize((128, 128), Image.Resampling.LANCZOS)
    edges = annotate("canny", small)
    assert (
        draw(model, Control(file="canny", image=huge)).tobytes()
        == draw(model, Control(file="canny", image=edges)).tobytes()
    )


def test_what_made_the_hint_is_in_the_recipe(model: Pipeline, shipped: Path) -> None:
    for image, module in ((LARGE, "canny"), (annotate("canny", LARGE), "none")):
        info = draw(model, Control(file="canny", image=image)).info
        assert json.loads(info[RECIPE])["request"]["controls"][0]["annotator"] == module
        assert f"Module: {module}, Model: canny [" in info["parameters"]


def test_a_shipped_control_that_is_absent_is_named(
    model: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "files", lambda package: tmp_path)
    with pytest.raises(
        ModelFileError, match="the control canny is not in this installation, which lacks mini-canny"
    ):
        draw(model, Control(file="canny", image=LARGE))


def test_a_shipped_control_says_which_models_it_is_not_for(tiny: Path, shipped: Path, tmp_path: Path) -> None:
    other = drawn_at_random(
        ControlNet(ControlNetConfig(replace(inkwash.load(tiny).unet.config, context_dim=16)))
    )
    write_controlnet(other, shipped, "diffusers")
    with pytest.raises(ModelFileError, match="mini-canny is for another model"):
        draw(inkwash.load(tiny), Control(file="canny", image=LARGE))


def test_which_pictures_are_taken_for_hints() -> None:
    lines = annotate("canny", LARGE)
    assert is_line_map(lines) and is_line_map(lines.resize((256, 256)).convert("L"))
    assert not is_line_map(LARGE)
    assert not is_line_map(lines.point(lambda value: 255 - value))  # a drawing in ink
    assert not is_line_map(Image.merge("RGB", (lines.getchannel(0), *[Image.new("L", lines.size)] * 2)))
    assert not is_line_map(Image.linear_gradient("L"))


def test_annotators_are_those_that_see_pictures_in_colour() -> None:
    assert set(get_args(Annotators)) == {name for name, one in ANNOTATORS.items() if one.sees == "RGB"}


def test_texts_name_annotators() -> None:
    assert read_control("a=b.png:annotator=tile:0.5")["annotator"] == "tile"
    assert read_a1111("Module: canny, Model: a [1234]")["annotator"] == "canny"
    assert "annotator" not in read_a1111("Module: openpose, Model: a [1234]")
    with pytest.raises(ValueError, match="annotator"):
        Control.model_validate(read_control("a=b.png:annotator=most"))


def test_a_shipped_control_is_known_by_its_folders_name_too() -> None:
    names = [Control(file=name).file for name in ("mini-canny", "canny", "x/mini-canny")]
    assert names == ["canny", "canny", "x/mini-canny"]
