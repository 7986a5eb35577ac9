"""Overlap of two sets of features: precision, recall, density, coverage, neighbours. N, M samples, D width."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inkwash.metrics.estimates import (
    Estimate,
    check_features,
    in_groups,
    jackknife,
    mean_estimate,
    require,
    share_estimate,
)

ROWS = 1024  # of a distance matrix at once
FEWEST = 50
PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5  # as published


@dataclass(frozen=True)
class ManifoldFigures:
    """Figures over the manifolds of real and generated samples.

    precision: the share of generated samples within the real manifold; recall: the other way (Kynkäänniemi et al. 2019).
    density: how many real balls hold a generated sample, of those expected; coverage: the share of real balls that hold one
    (Naeem et al. 2020). Intervals take the manifolds for given.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) in float64."""
    return torch.cdist(a.double(), b.double())


def radii(features: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """The distance (len(neighbours), N) of each sample to its k-th nearest other one."""
    rows = []
    for chunk in features.split(ROWS):
        nearest = (
            distances(chunk, features).topk(max(neighbours) + 1, largest=False).values
        )  # itself is the first
        rows.append(nearest[:, list(neighbours)])
    return torch.cat(rows).T


def manifold_figures(real: Tensor, generated: Tensor) -> ManifoldFigures:
    """Manifold figures of features (N, D) and (M, D). Raises TooFewSamplesError for fewer than 50 of either."""
    for side in (real, generated):
        check_features(side)
        require(len(side), FEWEST, "a manifold", "its balls would be as wide as the whole")
    near, wide = radii(real, (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS))
    (own,) = radii(generated, (PRECISION_NEIGHBOURS,))
    precise = torch.zeros(len(generated), dtype=torch.bool)
    inside = torch.zeros(len(generated), dtype=torch.float64)
    recalled, covered = [], []
    for rows in torch.arange(len(real)).split(ROWS):
        apart = distances(real[rows], generated)
        precise |= (apart <= near[rows, None]).any(0)
        in_ball = apart <= wide[rows, None]
        inside += in_ball.sum(0)
        recalled.append((apart <= own).any(1))
        covered.append(in_ball.any(1))
    return ManifoldFigures(
        share_estimate(precise),
        share_estimate(torch.cat(recalled)),
        mean_estimate(inside / COVERAGE_NEIGHBOURS).within(low=0),
        share_estimate(torch.cat(covered)),
    )


def nearest(queries: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) and index (N,) of the nearest of `among` (M, D) to each query (N, D)."""
    found = [distances(chunk, among).min(1) for chunk in queries.split(ROWS)]
    return torch.cat([pair.values for pair in found]), torch.cat([pair.indices for pair in found])


def memorised(apart: Tensor, usual: Tensor) -> Estimate:
    """The share of generated samples nearer to a training sample than 99 % of held-out samples are.

    apart (N,), usual (M,): the distances of generated and of held-out samples to their nearest training sample. About 1 %
    is what new samples of the data give. Raises TooFewSamplesError for fewer than 100 held-out samples.
    """
    require(len(usual), 100, "memorisation", "1 % of the held-out pictures is less than one")
    return share_estimate(apart < usual.quantile(0.01))


def diversity(features: Tensor) -> Estimate:
    """The mean cosine distance of two samples of features (N, D): 0 where all are alike."""
    check_features(features)
    require(len(features), FEWEST, "diversity", "too few pairs")
    groups = in_groups(torch.nn.functional.normalize(features.double()))
    sums = torch.stack([rows.sum(0) for rows in groups])

    def statistic(kept: object) -> float:
        num = sum(len(groups[g]) for g in kept)  # pyright: ignore
        return float(1 - (sums[kept].sum(0).square().sum() - num) / (num * (num - 1)))  # pyright: ignore

    return jackknife(statistic)
