"""Picture k of a batch is the picture drawn alone with seed + k."""

from pathlib import Path

import numpy as np
import pytest
import torch

import inkwash
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.pipeline.model import Model


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return inkwash.load(tiny)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_equals_alone(model: Model, sampler: str) -> None:
    options = {"steps": 5, "cfg_scale": 3, "sampler": sampler}
    batch = model.text_to_image("a taxi", "rain", seed=10, batch_size=3, **options)
    assert len({image.tobytes() for image in batch}) == 3
    for k, image in enumerate(batch):
        alone = model.text_to_image("a taxi", "rain", seed=10 + k, **options)[0]
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int))
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.999
        assert image.info["parameters"] == alone.info["parameters"]  # it names the seed that draws it alone


def test_each_picture_may_have_its_own_prompt(model: Model) -> None:
    batch = model.text_to_image(("a taxi", "a rocket"), seed=3, batch_size=2, steps=3)
    alone = model.text_to_image("a rocket", seed=4, steps=3)[0]
    assert np.abs(np.asarray(batch[1], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    assert batch[1].info["parameters"] == alone.info["parameters"]
    with pytest.raises(ValueError, match="2 prompts were given for batch_size 3"):
        model.text_to_image(("a", "b"), batch_size=3)


def test_threads_do_not_change_the_picture(model: Model) -> None:
    draw = lambda: np.asarray(model.text_to_image("a taxi", seed=1, steps=4)[0], dtype=int)  # noqa: E731
    threads = torch.get_num_threads()
    many = draw()
    torch.set_num_threads(1)
    try:
        assert np.abs(draw() - many).max() <= 1
    finally:
        torch.set_num_threads(threads)


def test_sizes(model: Model) -> None:
    image = model.text_to_image("a taxi", width=64, height=40, steps=2)[0]
    assert image.size == (64, 40)
    with pytest.raises(ValueError, match="width 33 is not a multiple of 2; the nearest that are: 32 or 34"):
        model.text_to_image("a taxi", width=33)
