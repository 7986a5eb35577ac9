"""Figures with their confidence intervals. N samples, G groups of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 10  # that the jackknife leaves out one by one
NORMAL = 1.959964  # quantile 0.975
FEWEST = 10  # samples of a mean


class TooFewSamplesError(ValueError):
    """A figure was asked of so few samples that it would say nothing."""


@dataclass(frozen=True)
class Estimate:
    """A figure over the samples at hand, and the 95 % confidence interval of what infinitely many would give.

    A figure that depends on the number of samples, such as a Fréchet distance, may lie outside of its interval: `value` is
    what publications quote at that number, and the interval is corrected for the number.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def within(self, low: float = -math.inf, high: float = math.inf) -> "Estimate":
        """The estimate with its interval cut to the figure's range."""
        return Estimate(self.value, *(min(max(end, low), high) for end in (self.low, self.high)))


def require(num: int, fewest: int, figure: str, why: str) -> None:
    """Raise TooFewSamplesError for fewer samples than a figure needs."""
    if num < fewest:
        raise TooFewSamplesError(f"{figure} needs at least {fewest:,} pictures, not {num:,}: {why}")


def check_features(features: Tensor, what: str = "features") -> None:
    """Raise ValueError for anything but finite features (N, D)."""
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise ValueError(f"the {what} must be finite (N, D), not {tuple(features.shape)}")


def in_groups(rows: Tensor) -> list[Tensor]:
    """Sample k of (N, ...) goes into group k mod G, whatever the order in which shards come."""
    return [rows[g::GROUPS] for g in range(GROUPS)]


def student(freedom: int) -> float:
    """The quantile 0.975 of Student's t, to 0.02 % from 9 degrees of freedom on (by powers of their inverse)."""
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**k for k, term in enumerate(terms))


def mean_estimate(values: Tensor, figure: str = "a mean") -> Estimate:
    """The mean of values (N,), with Student's interval."""
    values = values.double()
    require(len(values), FEWEST, figure, "the spread of fewer can't be told")
    mean = float(values.mean())
    half = student(len(values) - 1) * float(values.std()) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def share_estimate(hits: Tensor) -> Estimate:
    """The share of True in (N,), with the interval of Wilson (1927), which holds near 0 and 1 too."""
    num, share = len(hits), float(hits.double().mean())
    spread = NORMAL**2 / num
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Estimate(share, middle - half, middle + half).within(0, 1)


def jackknife(statistic: Callable[[Sequence[int]], float]) -> Estimate:
    """A statistic of groups of samples, with the interval of the delete-one-group jackknife (Shao & Tu 1995, section 2.3).

    statistic: its value over the groups of these numbers, 0 to G - 1. What the value owes to the number of samples, in
    first order, is taken off the interval.
    """
    everything = range(GROUPS)
    value = statistic(everything)
    left = torch.tensor(
        [statistic([g for g in everything if g != out]) for out in everything], dtype=torch.float64
    )
    middle = GROUPS * value - (GROUPS - 1) * float(left.mean())
    half = student(GROUPS - 1) * (GROUPS - 1) / math.sqrt(GROUPS) * float(left.std())
    return Estimate(value, middle - half, middle + half)
