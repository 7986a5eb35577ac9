"""Regions of a picture: each is drawn by its own denoiser, and what they share passes from one to the other."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inkwash.diffusion.guidance import Guided, Need, Prediction
from inkwash.diffusion.regions import Region, regional, shares

SIGMA = torch.tensor([2.0])


def constant(value: float, calls: list[tuple[int, ...]] | None = None) -> Guided:
    """A denoiser that predicts one value, other ones by its conditions alone, and notes the shapes that it sees."""

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        if calls is not None:
            calls.append(tuple(x.shape))
        made = [torch.full_like(x, value * k) for k in (1, 10, 100)]
        return Prediction(*made, x[:, :0])

    return Guided(predict)


@st.composite
def rectangles(draw: Any) -> tuple[tuple[int, int], list[Region]]:
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        spans = []
        for side in size:
            start = draw(st.integers(0, side - 1))
            spans.append(slice(start, draw(st.integers(start + 1, side))))
        made.append(Region(*spans, constant(1.0)))
    return size, made


@given(rectangles())
def test_shares_are_a_partition(given: tuple[tuple[int, int], list[Region]]) -> None:
    size, regions = given
    rest, weights = shares(regions, size)
    total, covered = rest.clone(), torch.zeros(size, dtype=torch.bool)
    for region, weight in zip(regions, weights, strict=True):
        assert (weight >= 0).all()
        total[region.rows, region.columns] += weight
        covered[region.rows, region.columns] = True
    assert torch.allclose(total, torch.ones(size), atol=1e-5)
    assert (rest[~covered] == 1).all()
    if covered.all():
        assert (rest == 0).all()


def test_each_region_sees_its_part_and_fills_it() -> None:
    x, calls = torch.randn(2, 4, 8, 24), ([], [], [])
    regions = [
        Region(slice(0, 8), slice(0, 8), constant(1, calls[0])),
        Region(slice(0, 4), slice(16, 24), constant(2, calls[1])),
    ]
    made = regional(constant(3, calls[2]), regions, (8, 24)).predict(x, SIGMA, "all")
    assert calls == ([(2, 4, 8, 8)], [(2, 4, 4, 8)], [(2, 4, 8, 24)])
    for field, k in zip(made[:3], (1, 10, 100), strict=True):
        assert (field[..., :6] == k).all() and (field[..., 8:16] == 3 * k).all()
        assert (field[:, :, :2, 18:] == 2 * k).all() and (field[:, :, 4:, 16:] == 3 * k).all()
        edge = field[0, 0, 0, 5:10]
        assert (edge.diff() >= 0).all()  # from the region to the rest
    assert made.variance.shape == (2, 0, 8, 24)


def test_the_whole_is_not_drawn_where_nothing_is_left_of_it() -> None:
    calls: list[tuple[int, ...]] = []
    regions = [Region(slice(0, 8), slice(8 * k, 8 * k + 8), constant(k + 1)) for k in range(2)]
    made = regional(constant(3, calls), regions, (8, 16))(torch.zeros(1, 4, 8, 16), SIGMA)
    assert not calls and (made[..., :8] == 1).all() and (made[..., 8:] == 2).all()


def test_regions_of_one_place_are_averaged() -> None:
    regions = [Region(slice(0, 8), slice(0, 16), constant(value)) for value in (1, 2, 6)]
    made = regional(constant(9), regions, (8, 16))(torch.zeros(1, 4, 8, 16), SIGMA)
    assert torch.allclose(made, torch.full_like(made, 3.0))  # equation 5 of MultiDiffusion


def test_one_passes_into_the_other_where_they_overlap() -> None:
    regions = [
        Region(slice(0, 8), slice(0, 20), constant(1)),
        Region(slice(0, 8), slice(12, 32), constant(2)),
    ]
    row = regional(constant(9), regions, (8, 32))(torch.zeros(1, 1, 8, 32), SIGMA)[0, 0, 4]
    assert (row[:12] == 1).all() and (row[20:] == 2).all() and (row.diff() >= 0).all()
    assert 1.4 < row[15:17].mean() < 1.6
