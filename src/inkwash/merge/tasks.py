"""Models tuned from one base, merged by their differences from it ("task vectors", Ilharco et al. 2022).

a: the base's tensor. models: those of the tuned ones. shares: a weight of each. density: the share of values that stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def task_arithmetic(a: Tensor, *models: Tensor, alpha: float, shares: Sequence[float]) -> Tensor:
    """A + alpha times the weighted sum of the differences."""
    return a + alpha * weighted([model - a for model in models], shares)


def ties(a: Tensor, *models: Tensor, alpha: float, density: float, shares: Sequence[float]) -> Tensor:
    """The largest values of each difference, where they have the sign that prevails (TIES, Yadav et al. 2023)."""
    return a + alpha * agreeing([largest(model - a, density) for model in models], shares)


def dare(
    a: Tensor, *models: Tensor, alpha: float, density: float, shares: Sequence[float], random: torch.Generator
) -> Tensor:
    """Values of each difference dropped by chance, the others divided by the density (DARE, Yu et al. 2023)."""
    return a + alpha * weighted([dropped(model - a, density, random) for model in models], shares)


def dare_ties(
    a: Tensor, *models: Tensor, alpha: float, density: float, shares: Sequence[float], random: torch.Generator
) -> Tensor:
    """DARE's differences, where they have the sign that prevails."""
    return a + alpha * agreeing([dropped(model - a, density, random) for model in models], shares)


def della(
    a: Tensor,
    *models: Tensor,
    alpha: float,
    density: float,
    epsilon: float,
    shares: Sequence[float],
    random: torch.Generator,
) -> Tensor:
    """As `dare_ties`, with small values dropped more often than large ones (DELLA, Deep et al. 2024, section 3.1).

    epsilon: how far the chance to stay goes from the smallest to the largest value of a row.
    """
    return a + alpha * agreeing([by_rank(model - a, density, epsilon, random) for model in models], shares)


def weighted(differences: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([share * each for share, each in zip(shares, differences, strict=True)]).sum(0)


def agreeing(differences: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean of what has the sign of the sum."""
    stack = torch.stack(list(differences))
    same = stack.sign() == torch.where(stack.sum(0) >= 0, 1, -1)
    weights = torch.tensor(shares, dtype=stack.dtype).reshape(-1, *[1] * (stack.ndim - 1))
    return (stack * weights * same).sum(0) / same.sum(0).clamp_min(1)


def largest(difference: Tensor, density: float) -> Tensor:
    """The share `density` of the values, those of the largest magnitude; the others are 0."""
    flat = difference.flatten()
    kept = flat.abs().topk(int(density * len(flat))).indices
    return torch.zeros_like(flat).index_put((kept,), flat[kept]).reshape(difference.shape)


def dropped(difference: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Each value kept with the probability `density`, and divided by it."""
    return difference * (torch.rand(difference.shape, generator=random) < density) / (density or 1.0)


def by_rank(difference: Tensor, density: float, epsilon: float, random: torch.Generator) -> Tensor:
    """Each value kept with a probability that rises with its rank in its row, and divided by it."""
    rows = difference.flatten(1) if difference.ndim > 1 else difference.reshape(1, -1)
    ranks = rows.abs().argsort(-1).argsort(-1) / max(rows.shape[-1] - 1, 1)
    keep = (density + epsilon * (ranks - 0.5)).clamp(0, 1)
    made = rows * (torch.rand(rows.shape, generator=random) < keep) / keep.clamp_min(1e-6)
    return made.reshape(difference.shape)
