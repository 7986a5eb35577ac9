"""Intervals against SciPy, and by how often they cover."""

import pytest
import scipy.stats
import torch

from inkwash.metrics.estimates import (
    Estimate,
    TooFewSamplesError,
    jackknife,
    mean_estimate,
    share_estimate,
    student,
)
from tests.support.samples import gaussian_samples


@pytest.mark.parametrize("freedom", [9, 30, 1000])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-4)


def test_a_means_interval_is_scipys() -> None:
    values = gaussian_samples(0, 40, 1)[:, 0].double()
    error = scipy.stats.sem(values.numpy())
    low, high = scipy.stats.t.interval(0.95, 39, loc=values.mean().item(), scale=error)
    estimate = mean_estimate(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-5)


@pytest.mark.parametrize("hits", [0, 3, 50, 100])
def test_a_shares_interval_is_scipys(hits: int) -> None:
    theirs = scipy.stats.binomtest(hits, 100).proportion_ci(method="wilson")
    estimate = share_estimate(torch.arange(100) < hits)
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_the_jackknife_of_a_mean_is_the_groups_interval_and_of_a_square_is_unbiased() -> None:
    means = gaussian_samples(0, 10, 1)[:, 0].double()
    low, high = scipy.stats.t.interval(0.95, 9, loc=means.mean().item(), scale=scipy.stats.sem(means.numpy()))
    estimate = jackknife(lambda kept: float(means[kept].mean()))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-3)
    # the square of a mean is too large by the variance of the mean, wholly of first order
    squared = jackknife(lambda kept: float(means[kept].mean()) ** 2)
    expected = float(means.mean() ** 2 - means.var() / 10)
    assert (squared.low + squared.high) / 2 == pytest.approx(expected, rel=1e-9)


def test_bounds_and_text() -> None:
    assert Estimate(0.5, -0.25, 1.5).within(0, 1) == Estimate(0.5, 0, 1)
    assert str(Estimate(12.3456, 10, 15.25)) == "12.35 (10 to 15.25)"


def test_a_mean_of_few_is_refused() -> None:
    with pytest.raises(TooFewSamplesError, match="PSNR needs at least 10 pictures, not 9"):
        mean_estimate(torch.zeros(9), "PSNR")
