"""Picture k of a batch is the picture drawn alone with seed + k."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.pipeline.api import Pipeline
from tests.support.tiny_models import WAYS, variants


@pytest.fixture(scope="module")
def models(tiny: Path) -> dict[str, Pipeline]:
    return variants(tiny)


@pytest.fixture(scope="module")
def model(models: dict[str, Pipeline]) -> Pipeline:
    return models["plain"]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every draw of noise."""
    made: list[torch.Tensor] = []
    draw = NoiseSource.__call__

    def noted(self: NoiseSource) -> torch.Tensor:
        made.append(draw(self))
        return made[-1].clone()

    monkeypatch.setattr(NoiseSource, "__call__", noted)
    return made


def almost_equal(image: Image.Image, alone: Image.Image) -> None:
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    assert image.info["parameters"] == alone.info["parameters"]  # it names the seed that draws it alone


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 3) for name in WAYS), *((next(iter(WAYS)), size) for size in (2, 4, 8))]
)
def test_every_way_to_draw_a_batch_is_drawing_alone(
    models: dict[str, Pipeline], draws: list[torch.Tensor], name: str, size: int
) -> None:
    """Noise to the byte, and pictures up to the rounding of batched arithmetic."""
    way, options = WAYS[name], {"steps": 2, "cfg_scale": 3, "sampler": "euler_ancestral"}
    alone, noises = [], []
    for k in range(size):
        alone += way.draw(models[way.variant], seed=10 + k, **options)
        noises.append(draws.copy())
        draws.clear()
    assert len({image.tobytes() for image in alone}) == size
    batch = way.draw(models[way.variant], seed=10, batch_size=size, **options)
    wanted = [torch.cat(same) for same in zip(*noises, strict=True)]
    assert len(draws) == len(wanted) >= 2  # before the first step, and in it
    assert all(torch.equal(a, b) for a, b in zip(draws, wanted, strict=True))
    for image, one in zip(batch, alone, strict=True):
        almost_equal(image, one)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_equals_alone(model: Pipeline, sampler: str) -> None:
    options = {"steps": 4, "cfg_scale": 3, "sampler": sampler}
    batch = model.text_to_image("a taxi", "rain", seed=10, batch_size=2, **options)
    assert len({image.tobytes() for image in batch}) == 2
    for k, image in enumerate(batch):
        alone = model.text_to_image("a taxi", "rain", seed=10 + k, **options)[0]
        almost_equal(image, alone)


def test_each_picture_may_have_its_own_prompt(model: Pipeline) -> None:
    batch = model.text_to_image(("a taxi", "a rocket"), seed=3, batch_size=2, steps=3)
    alone = model.text_to_image("a rocket", seed=4, steps=3)[0]
    assert np.abs(np.asarray(batch[1], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    assert batch[1].info["parameters"] == alone.info["parameters"]
    with pytest.raises(ValueError, match="2 prompts were given for batch_size 3"):
        model.text_to_image(("a", "b"), batch_size=3)


def test_sizes(model: Pipeline) -> None:
    image = model.text_to_image("a taxi", width=64, height=40, steps=2)[0]
    assert image.size == (64, 40)
    with pytest.raises(ValueError, match="width 33 is not a multiple of 2; the nearest that are: 32 or 34"):
        model.text_to_image("a taxi", width=33)
