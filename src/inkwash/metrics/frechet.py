"""Fréchet distance of two sets of features, over streamed moments. N samples, D feature width."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inkwash.metrics.estimates import Estimate, check_features, in_groups, jackknife, require


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of samples, in float64; those of two disjoint sets are added."""

    count: int
    mean: Tensor  # (D,)
    scatter: Tensor  # (D, D), the sum of outer products about the mean

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features (N, D). Raises ValueError for features that are not finite."""
        check_features(features)
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan et al. 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = (
            self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        )
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1)


def read_moments(path: Path) -> Moments:
    """Read moments from an .npz with mu (D,) and sigma (D, D), as pytorch-fid writes it. Raises ValueError for any other.

    The number of samples, which such a file does not say, is taken for large.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (
                torch.from_numpy(np.asarray(file[name], np.float64)) for name in ("mu", "sigma")
            )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no mu and sigma of features: {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not torch.isfinite(covariance).all():
        raise ValueError(
            f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} are not moments: finite ones of "
            "shapes (D,) and (D, D) are needed"
        )
    count = 10**6
    return Moments(count, mean, covariance * (count - 1))


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Fréchet distance of two feature sets (N, D) taken as Gaussians (Heusel et al. 2017, equation 6).

    Which network gave the features is the caller's to say: only distances over the same one compare.
    Raises ValueError for fewer than two samples, other widths, or features that are not finite.
    """
    a, b = (side if isinstance(side, Moments) else Moments.of(side) for side in (a, b))
    if min(a.count, b.count) < 2 or a.mean.shape != b.mean.shape:
        widths = f"{len(a.mean)} and {len(b.mean)}"
        raise ValueError(
            f"a Fréchet distance is of two sets of features of one width, not {a.count} and {b.count} of widths {widths}"
        )
    # tr (Ca Cb)^1/2 is the sum of the square roots of the eigenvalues of Ca^1/2 Cb Ca^1/2, which is symmetric
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(distance.clamp_min(0))


def group_moments(features: Tensor) -> list[Moments]:
    """The moments of each of the jackknife's groups of features (N, D)."""
    return [Moments.of(rows) for rows in in_groups(features)]


def frechet_estimate(a: Sequence[Moments], b: Sequence[Moments]) -> Estimate:
    """The Fréchet distance of two sets given as `group_moments`, or as one whole whose own spread is not counted.

    Raises TooFewSamplesError for as many samples as features or fewer, whose covariance is singular: the distance then says
    how many samples there are.
    """
    for side in (a, b):
        width = len(side[0].mean)
        require(
            sum(moments.count for moments in side),
            width + 1,
            f"a Fréchet distance over {width:,} features",
            "their covariance would be singular; a kernel distance needs fewer",
        )

    def together(side: Sequence[Moments], kept: Sequence[int]) -> Moments:
        return reduce(add, (side[g] for g in kept)) if len(side) > 1 else side[0]

    return jackknife(lambda kept: frechet_distance(together(a, kept), together(b, kept))).within(low=0)
