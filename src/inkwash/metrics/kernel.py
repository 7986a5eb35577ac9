"""Kernel distances (MMD) of two sets of features. N samples, D feature width, G groups."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from inkwash.metrics.estimates import GROUPS, Estimate, check_features, in_groups, jackknife, require

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
FEWEST = 50
SIGMA = 10.0  # of CMMD's kernel, for vectors of length 1 (Jayasumana et al. 2024)


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """(x·y / D + 1)³, the kernel of KID (Bińkowski et al. 2018)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian(a: Tensor, b: Tensor, sigma: float = SIGMA) -> Tensor:
    """exp(-|x - y|² / 2 sigma²)."""
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return torch.exp(-squared.clamp_min(0) / (2 * sigma**2))


def kernel_distance(a: Tensor, b: Tensor, kernel: Kernel = polynomial, unbiased: bool = True) -> Estimate:
    """Squared MMD of features (N, D) and (M, D) over all pairs (Gretton et al. 2012, equations 3 and 5).

    KID is published as the mean over subsets of 1,000; its expectation is this value, without their noise. unbiased: leave
    out the pairs of a sample with itself. Raises TooFewSamplesError for fewer than 50.
    """
    for side in (a, b):
        check_features(side)
        require(len(side), FEWEST, "a kernel distance", "its interval would be wider than any difference")
    x, y = in_groups(a.double()), in_groups(b.double())
    xx, yy, xy = group_sums(x, x, kernel), group_sums(y, y, kernel), group_sums(x, y, kernel)
    own_x, own_y = (diagonal(groups, kernel) if unbiased else None for groups in (x, y))

    def statistic(kept: Sequence[int]) -> float:
        n, m = (sum(len(groups[g]) for g in kept) for groups in (x, y))
        within = mean_of(xx, own_x, kept, n) + mean_of(yy, own_y, kept, m)
        return within - 2 * float(xy[kept][:, kept].sum()) / (n * m)

    return jackknife(statistic)


def kid(a: Tensor, b: Tensor) -> Estimate:
    """Kernel Inception distance of features (N, D) and (M, D), of any network (Bińkowski et al. 2018)."""
    return kernel_distance(a, b)


def cmmd(a: Tensor, b: Tensor) -> Estimate:
    """CMMD of features (N, D) and (M, D) times 1,000, each scaled to length 1 (Jayasumana et al. 2024)."""
    a, b = (torch.nn.functional.normalize(side.double()) for side in (a, b))
    found = kernel_distance(a, b, partial(gaussian, sigma=SIGMA), unbiased=False)
    return Estimate(*(1000 * part for part in (found.value, found.low, found.high)))


def group_sums(x: Sequence[Tensor], y: Sequence[Tensor], kernel: Kernel) -> Tensor:
    """The sum of the kernel (G, G) over the pairs of each two groups; of a set with itself, by halves."""
    sums = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
    for g in range(GROUPS):
        for h in range(g if x is y else 0, GROUPS):
            sums[g, h] = kernel(x[g], y[h]).sum()
            if x is y:
                sums[h, g] = sums[g, h]
    return sums


def diagonal(groups: Sequence[Tensor], kernel: Kernel) -> Tensor:
    """The kernel of each sample with itself, summed by groups (G,)."""
    return torch.stack([sum_of_own(rows, kernel) for rows in groups])


def sum_of_own(rows: Tensor, kernel: Kernel) -> Tensor:
    return torch.cat([kernel(row[None], row[None])[0] for row in rows]).sum()


def mean_of(sums: Tensor, own: Tensor | None, kept: Sequence[int], num: int) -> float:
    total = sums[kept][:, kept].sum()
    return float(total / num**2 if own is None else (total - own[kept].sum()) / (num * (num - 1)))
