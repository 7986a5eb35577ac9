"""Sheets and plots of merges of which no model is written."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.explain.drawing import as_svg
from inkwash.explain.sheets import Axis
from inkwash.files import ModelFileError
from inkwash.merge.expression import Model, merged
from inkwash.merge.grids import axis, drawn, merge_sheet, moved, plots, varied
from inkwash.merge.recipe import Recipe, checked
from inkwash.pipeline.task_requests import TextToImageRequest

REQUEST = TextToImageRequest(prompt="a taxi", steps=2, seed=3)


@pytest.fixture
def recipe(checkpoints: dict[str, Path]) -> Recipe:
    models = {name: str(checkpoints[name]) for name in "ab"}
    return checked({"models": models, "steps": [{"method": "weighted_sum", "models": ["a", "b"]}]}, "here")


def test_what_is_drawn_is_what_the_models_draw(recipe: Recipe, checkpoints: dict[str, Path]) -> None:
    sources = recipe.sources()
    for name, alpha in (("a", 0.0), ("b", 1.0)):
        (made,) = drawn(varied(recipe, "alpha", alpha), sources, REQUEST)
        (wanted,) = inkwash.load(checkpoints[name]).text_to_image("a taxi", steps=2, seed=3)
        # b is float32 in its file, and float16 in a merge that a leads
        assert np.abs(np.asarray(made, int) - np.asarray(wanted, int)).max() <= (0 if name == "a" else 8)
        assert "Model hash" not in made.info["parameters"]


def test_a_sheet_has_a_picture_a_value(recipe: Recipe) -> None:
    sources = recipe.sources()
    one = merge_sheet(recipe, sources, [Axis("alpha", ("0", "1"))], REQUEST)
    two = merge_sheet(recipe, sources, [Axis("alpha", ("0", "1", "2"))], REQUEST)
    assert two.width >= one.width
    assert "X Type: alpha" in one.info["parameters"]
    with pytest.raises(ValueError, match="a grid has one axis or two different ones, not alpha, alpha"):
        merge_sheet(recipe, sources, [Axis("alpha", ("0",))] * 2, REQUEST)
    with pytest.raises(ModelFileError, match="weighted_sum has no parameter gamma"):
        merge_sheet(recipe, sources, [Axis("gamma", ("0",))], REQUEST)
    with pytest.raises(ModelFileError, match="strength is of adapters that are baked"):
        merge_sheet(recipe, sources, [Axis("strength", ("0",))], REQUEST)


def test_axes_are_read_or_refused() -> None:
    assert axis("alpha=0, 0.5,1") == Axis("alpha", ("0", "0.5", "1"))
    for text in ("alpha", "alpha=", "alpha=x", "alpha=0,nan", "steps=1"):
        with pytest.raises(ValueError, match="is not an axis such as alpha=0,0.5,1"):
            axis(text)


def test_how_far_blocks_moved(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoints["b"])
    part = "model.diffusion_model.input_blocks.1."
    twice = {name: 2 * value if name.startswith(part) else value for name, value in tensors.items()}
    save_file(twice, tmp_path / "twice.safetensors")
    a, b = Model.open(checkpoints["b"]), Model.open(tmp_path / "twice.safetensors")
    value = merged("weighted_sum", a, b, alpha={"base": 0.5, "blocks": [0.25] * 9})
    far = moved(value)
    assert far.pop("IN01") == pytest.approx(0.25, abs=1e-5)
    assert set(far.values()) == {0.0}
    drawn_plot = as_svg(plots(value))
    root = ElementTree.fromstring(drawn_plot)
    assert len(root) == 2
    assert drawn_plot.count("IN01") == 2
