"""The options of one merge step."""

from typing import get_args

import pytest

from inkwash.merge.methods import METHODS
from inkwash.merge.options import MergeOptions, MethodName
from inkwash.merge.recipe import Recipe


def test_methods_are_those_that_there_are() -> None:
    assert get_args(MethodName) == tuple(METHODS)


@pytest.mark.parametrize(("num", "method"), [(2, "weighted_sum"), (3, "add_difference"), (5, "weighted_sum")])
def test_the_method_follows_from_the_number_of_models(num: int, method: str) -> None:
    given = MergeOptions(models=tuple(f"m{k}" for k in range(num)))
    recipe = Recipe.model_validate(given.recipe())
    assert recipe.steps[0].method == method
    assert list(recipe.models.values()) == list(given.models)
    assert recipe.steps[0].alpha is None


def test_numbers_and_blocks_go_into_their_parameters() -> None:
    given = MergeOptions(
        models=("x", "y"), alpha=0.2, block_weights="GRAD_V", components={"vae": 1.0}, rules=("IN00:attn:0.5",),
        block_weights_beta="0.1,0.2", ema=True,
    )  # fmt: skip
    recipe = Recipe.model_validate(given.recipe())
    alpha, beta = recipe.steps[0].alpha, recipe.steps[0].beta
    assert alpha
    assert (alpha.base, alpha.blocks, alpha.components, alpha.rules) == (
        0.2, "GRAD_V", {"vae": 1.0}, ("IN00:attn:0.5",),
    )  # fmt: skip
    assert beta
    assert beta.blocks == (0.1, 0.2)
    assert recipe.ema == ("a", "b")
