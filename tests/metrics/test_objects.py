"""Regions against SciPy's labels, and what stands out of plain backgrounds."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from inkwash.metrics.objects import count_objects, on_white, standing_out


@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_scipy(seed: int) -> None:
    """Of smooth noise with a plain edge, of snakes and rings as well as of blobs."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.standard_normal((128, 128)), 6) > 0.02
    field[[0, -1]] = field[:, [0, -1]] = False
    grown = ndimage.binary_dilation(field, np.ones((5, 5)))
    labels, num = ndimage.label(grown, np.ones((3, 3)))
    expected = sum(np.sum(labels == k) >= 0.02 * 128**2 for k in range(1, num + 1))
    picture = torch.from_numpy(field).float().expand(3, -1, -1) * 2 - 1
    assert num > 1 and count_objects(picture) == expected
    assert count_objects(picture.repeat_interleave(2, 1).repeat_interleave(2, 2)) == expected


def test_what_stands_out_is_kept_and_the_rest_is_white() -> None:
    picture = torch.full((1, 3, 16, 16), 0.3)
    picture[:, :, 4:8, 4:8] = -0.5
    assert standing_out(picture).sum() == 16
    made = on_white(picture)
    assert (made[:, :, 4:8, 4:8] == -0.5).all() and made.sum() == 3 * (240 - 8)


def test_a_picture_of_nothing_has_no_objects() -> None:
    assert count_objects(torch.full((3, 128, 128), -0.2)) == 0
