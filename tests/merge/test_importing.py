"""Recipes of other tools, as far as they go."""

from pathlib import Path

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.merge.expression import Model, Value
from inkwash.merge.importing import from_mecha, from_mergekit
from inkwash.merge.recipe import read_recipe

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def value_of(path: Path, checkpoints: dict[str, Path]) -> Value:
    recipe = read_recipe(path)
    value = recipe.value(recipe.sources(checkpoints["a"].parent))
    assert isinstance(value, Value)
    return value


def test_a_mecha_file_computes_what_it_says(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    text = """version 0.1.0
    # A plus half of what leads from C to B, then a third of B
    model "a.safetensors" "sd1-ldm"
    model "b.safetensors" "sd1-ldm"
    model "c.safetensors" "sd1-ldm"
    merge "subtract" &1 &2
    merge "add_difference" &0 &3 alpha=0.5
    merge "weighted_sum" &4 &1 alpha=0.25
    """
    (tmp_path / "r.mecha").write_text(text)
    a, b, c = (Model.open(checkpoints[name]).tensor(FIRST) for name in "abc")
    wanted = 0.75 * (a + 0.5 * (b - c)) + 0.25 * b
    made = value_of(tmp_path / "r.mecha", checkpoints).tensor(FIRST)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)


def test_weights_of_blocks_in_a_mecha_file() -> None:
    text = 'model "x"\nmodel "y"\ndict sdxl_unet_block_in1=1 unet_block_mid=0.5 unet_block_out8=0.2 default=0.1\n'
    fields = from_mecha(text + 'call "weighted_sum" &0 &1 alpha=&2')
    assert fields["models"] == {"m0": "x", "m1": "y"}
    (step,) = fields["steps"]
    numbers = [0.1, 1, *[0.1] * 7, 0.5, *[0.1] * 8, 0.2]
    assert step["alpha"] == {"base": 0.1, "blocks": numbers, "block_map": "sd-mecha"}


MERGEKIT = """
models:
  - model: a.safetensors
  - model: b.safetensors
    parameters: {weight: 0.5}
  - model: c.safetensors
    parameters: {weight: 0.25}
base_model: a.safetensors
merge_method: task_arithmetic
parameters: {lambda: 2}
dtype: float16
"""


def test_a_mergekit_list_computes_what_it_says(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "r.yaml").write_text(MERGEKIT)
    a, b, c = (Model.open(checkpoints[name]).tensor(FIRST) for name in "abc")
    made = value_of(tmp_path / "r.yaml", checkpoints).tensor(FIRST)
    torch.testing.assert_close(made, a + 2 * (0.5 * (b - a) + 0.25 * (c - a)), rtol=1e-5, atol=1e-6)
    assert read_recipe(tmp_path / "r.yaml").dtype == "fp16"
    mean = {"models": [{"model": "b", "parameters": {"weight": 3}}, {"model": "c"}], "merge_method": "linear"}
    assert from_mergekit(mean)["steps"][0]["shares"] == [3, 1]
    arc = {"models": [{"model": "b"}, {"model": "c"}], "merge_method": "slerp", "base_model": "b"}
    fields = from_mergekit(arc | {"parameters": {"t": 0.2}})
    assert (fields["models"], fields["steps"][0]["alpha"]) == ({"m0": "b", "m1": "c"}, 0.2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'model "x"\nmerge "rotate" &0 &0',
            "sd-mecha's method 'rotate' is not covered; these are: weighted_sum",
        ),
        ('model "x"\nmerge "slerp" &0 &3', "&3 is not the number of a line before it"),
        ('lora "x"', "sd-mecha's 'lora \"x\"' is not covered: model, dict and merge are"),
        ("dict txt_class_q=1", "sd-mecha's weight of txt_class_q is not covered"),
        ('model "x"\nmerge "slerp" &0 &0 alpha=much', "'much' is not a number"),
        ('model "x"\nmerge "slerp" &0 &0 beta=1', "slerp has beta, which is not covered"),
    ],
)
def test_what_a_mecha_file_has_that_is_not_covered(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.mecha").write_text(text)
    with pytest.raises(ModelFileError) as caught:
        read_recipe(tmp_path / "r.mecha")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LIST = {
    "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 0.5}}, {"model": "c"}],
    "base_model": "a",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_method": "breadcrumbs"}, "method 'breadcrumbs' is not covered; these are: linear"),
        ({"merge_method": "ties"}, "ties with different weights is not covered"),
        ({"merge_method": "linear", "slices": []}, "mergekit's slices is not covered"),
        ({"merge_method": "slerp", "parameters": {"t": [0, 1]}}, "t '[0, 1]' is not covered: one number"),
        ({"merge_method": "linear", "parameters": {"gamma": 1}}, "parameter gamma is not covered"),
        ({"merge_method": "linear", "dtype": "int8"}, "dtype 'int8' is not one of float32"),
    ],
)
def test_what_a_mergekit_list_has_that_is_not_covered(change: dict, said: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        from_mergekit(LIST | change)
    assert said in str(caught.value)
