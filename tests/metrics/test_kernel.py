"""Kernel distances against torchmetrics and plain sums, and their laws."""

import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from inkwash.metrics.estimates import TooFewSamplesError
from inkwash.metrics.kernel import cmmd, gaussian, kernel_distance, kid
from tests.metrics.test_frechet import Itself
from tests.support.samples import features, gaussian_samples


def test_kid_is_that_of_torchmetrics() -> None:
    """With one subset of all samples; the mean over many smaller ones goes to the same value."""
    a, b = features(120, 8, seed=0).double(), features(120, 8, seed=1, shift=0.4).double()
    theirs = KernelInceptionDistance(feature=Itself(8), subsets=1, subset_size=120).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert kid(a, b).value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)
    assert kid(b, a).value == pytest.approx(kid(a, b).value, rel=1e-9)


def test_cmmd_is_its_formula() -> None:
    a, b = features(60, 8, seed=0).double(), features(75, 8, seed=1, shift=0.4).double()
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a, b))

    def mean(x, y):
        return torch.exp(-(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 200).mean()

    expected = 1000 * float(mean(u, u) + mean(v, v) - 2 * mean(u, v))
    assert cmmd(a, b).value == pytest.approx(expected, rel=1e-6)
    assert cmmd(a, a).value == pytest.approx(0, abs=1e-9)


def test_the_interval_covers_the_true_distance_of_gaussians() -> None:
    """The expectation of a Gaussian kernel over Gaussians has a closed form."""
    sigma, dim, shift = 2.0, 3, torch.tensor([0.5, 0.0, -0.3])
    scale = (sigma**2 / (sigma**2 + 2)) ** (dim / 2)
    truth = 2 * scale * (1 - float(torch.exp(-shift.square().sum() / (2 * (sigma**2 + 2)))))
    covered = 0
    for trial in range(100):
        a, b = gaussian_samples(2 * trial, 200, dim), gaussian_samples(2 * trial + 1, 200, dim) + shift
        estimate = kernel_distance(a, b, lambda x, y: gaussian(x, y, sigma))
        covered += estimate.low <= truth <= estimate.high
    assert 90 <= covered <= 99


def test_few_samples_are_refused() -> None:
    with pytest.raises(TooFewSamplesError, match="needs at least 50 pictures, not 49"):
        kid(torch.zeros(49, 2), torch.zeros(60, 2))
