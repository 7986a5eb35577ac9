"""Figures of merit against closed forms, and against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from inkwash.metrics.fidelity import frechet_distance, psnr


def test_psnr() -> None:
    """A uniform error of e grey levels in 255 is 20 log10(255 / e) dB."""
    wanted = torch.zeros(2, 3, 8, 8)
    made = wanted + torch.tensor([1.0, 16.0]).view(2, 1, 1, 1) * 2 / 255
    expected = [20 * math.log10(255), 20 * math.log10(255 / 16)]
    torch.testing.assert_close(psnr(made, wanted), torch.tensor(expected, dtype=torch.float64))
    assert psnr(wanted, wanted).isfinite().all()


def test_psnr_of_half_precision_is_not_coarser() -> None:
    made = torch.full((1, 3, 64, 64), 0.5)
    wanted = made + 0.01
    torch.testing.assert_close(psnr(made.half(), wanted.half()), psnr(made, wanted), rtol=0.02, atol=0)


def features(num: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator)
    return torch.randn(num, dim, generator=generator) @ mix + shift


@pytest.mark.parametrize(("num_a", "num_b"), [(500, 400), (10, 500)])  # the second has a singular covariance
def test_frechet_distance_is_that_of_scipy(num_a: int, num_b: int) -> None:
    a, b = features(num_a, 16, seed=0), features(num_b, 16, seed=1, shift=0.5)
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(cov_x @ cov_y).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_shift_and_of_itself() -> None:
    a = features(300, 8, seed=0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 4), torch.zeros(4), torch.full((4, 4), math.nan)], ids=["one", "flat", "NaN"]
)
def test_features_that_give_no_distance(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the second features must be finite"):
        frechet_distance(torch.zeros(4, 4), bad)
