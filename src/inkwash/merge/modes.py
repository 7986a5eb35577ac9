"""supermerger's calc modes: sums whose weights depend on the values of the tensors themselves.

a, b, c: the same tensor of three models, in float32.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 1_000_000  # cosines that are kept of a tensor at most


def cosines(a: Tensor, b: Tensor, **_: float) -> Tensor:
    """Cosines of the columns of A and B; of vectors, that of the whole."""
    return F.cosine_similarity(a, b, dim=0).flatten()[:SAMPLES]


def middle_range(found: Tensor) -> tuple[float, float]:
    """The least and the largest of all cosines but the outer percents."""
    found = found[found.isfinite()].sort().values
    if not len(found):
        return 0.0, 0.0
    last = len(found) - 1
    return float(found[round(0.01 * last)]), float(found[round(0.99 * last)])


def cosine_a(a: Tensor, b: Tensor, *, alpha: float, found: tuple[float, float]) -> Tensor:
    """More of A where the columns of A and B point alike, so that what A has in common with B keeps A's form."""
    return by_cosine(a, b, F.normalize(a, dim=0), F.normalize(b, dim=0), alpha, found)


def cosine_b(a: Tensor, b: Tensor, *, alpha: float, found: tuple[float, float]) -> Tensor:
    """As cosine_a, but long columns count more in the cosine of the whole tensor."""
    return by_cosine(a, b, a, b, alpha, found)


def by_cosine(a: Tensor, b: Tensor, u: Tensor, v: Tensor, alpha: float, found: tuple[float, float]) -> Tensor:
    """k A + (1 - k) B, k being the cosine between the extremes `found`, less alpha. u, v: what is compared."""
    low, high = found
    whole = F.cosine_similarity(u.flatten(), v.flatten(), dim=0)
    near = (F.cosine_similarity(u, v, dim=0) + whole) / 2
    k = ((near - low) / max(high - low, 1e-12) - alpha).clamp(0, 1)
    return torch.lerp(b, a, k)


def train_difference(a: Tensor, b: Tensor, c: Tensor, *, alpha: float) -> Tensor:
    """A plus B - C, as if A was trained by it: less where A is already as far from C as B is."""
    difference, distance = b - c, (b - a).abs()
    total = difference.abs() + distance
    share = torch.where(total > 0, distance / total, 0)
    return a + 1.8 * alpha * share * difference


def smooth_add(a: Tensor, b: Tensor, c: Tensor, *, alpha: float) -> Tensor:
    """A + alpha times B - C, of which single outliers are taken out: a median of 3, then a Gaussian of 1, along all axes."""
    return a + alpha * gaussian(median(b - c))


def median(x: Tensor) -> Tensor:
    """The median of each value and its neighbours, 3 along each axis."""
    padded = x
    for axis in range(x.ndim):
        padded = reflected(padded, axis, 1)
    windows = []
    for offsets in product(range(3), repeat=x.ndim):
        view = padded
        for axis, offset in enumerate(offsets):
            view = view.narrow(axis, offset, x.shape[axis])
        windows.append(view)
    rows = [
        torch.stack([view[i] for view in windows]).median(0).values
        for i in range(x.shape[0] if x.ndim else 0)
    ]
    return torch.stack(rows) if rows else x


def gaussian(x: Tensor, radius: int = 4) -> Tensor:
    """A Gaussian of sigma 1, one axis after the other."""
    kernel = torch.exp(-0.5 * torch.arange(-radius, radius + 1).float() ** 2)
    for axis in range(x.ndim):
        padded = reflected(x, axis, radius)
        parts = (
            weight * padded.narrow(axis, i, x.shape[axis]) for i, weight in enumerate(kernel / kernel.sum())
        )
        x = sum(parts, torch.zeros_like(x))
    return x


def reflected(x: Tensor, axis: int, width: int) -> Tensor:
    """The tensor with its mirror image at both ends of an axis, the outermost values twice."""
    num = x.shape[axis]
    places = torch.arange(-width, num + width) % (2 * num)
    return x.index_select(axis, torch.minimum(places, 2 * num - 1 - places))


def extract(a: Tensor, b: Tensor, c: Tensor, *, alpha: float, beta: float, gamma: float) -> Tensor:
    """The base A plus what B and C have in common (beta 0) or not (beta 1) beside it.

    alpha: from B to C. gamma: how alike rows must be to count as common.
    """
    b, c = b - a, c - a
    near = F.cosine_similarity(b, c, dim=-1).clamp(-1, 1)[..., None] if a.ndim else torch.ones(())
    common = ((near + 1) / 2) ** gamma
    return a + torch.lerp(b, c, alpha) * torch.lerp(common, 1 - common, beta)


def swap_rows(a: Tensor, b: Tensor, *, alpha: float, beta: float) -> Tensor:
    """A with B's outputs from the share beta on, alpha of them, around the end if need be."""
    return swapped(a, b, 0, alpha, beta)


def swap_columns(a: Tensor, b: Tensor, *, alpha: float, beta: float) -> Tensor:
    """A with B's inputs, where there are some, from the share beta on, alpha of them, around the end if need be."""
    return swapped(a, b, 1 if a.ndim > 1 else 0, alpha, beta)


def swapped(a: Tensor, b: Tensor, axis: int, alpha: float, beta: float) -> Tensor:
    if not a.ndim:
        return a
    num = a.shape[axis]
    around = alpha + beta > 1
    first, last = (
        (int(num * (alpha + beta - 1)), int(num * beta))
        if around
        else (int(num * beta), int(num * (alpha + beta)))
    )
    places = torch.arange(num)
    inside = (places >= first) & (places < last)
    return torch.where((inside != around).reshape(-1, *[1] * (a.ndim - 1 - axis)), b, a)
