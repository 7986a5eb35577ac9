"""Parts of a picture that follow conditions of their own. B batch, C channels, H W latent size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.diffusion.guidance import Guided, Need, Prediction


class Region(NamedTuple):
    """A rectangle of the latent, and the denoiser that draws it as a picture of its own."""

    rows: slice
    columns: slice
    D: Guided


def regional(whole: Guided, regions: Sequence[Region], size: tuple[int, int]) -> Guided:
    """Draw each region by its own denoiser, and by `whole` what none of them covers.

    Each region's denoiser sees x within its rectangle. Where regions overlap, their predictions are averaged
    (MultiDiffusion, Bar-Tal et al. 2023, equation 5), with weights that fall towards their edges, so that one passes into
    the other; a region passes into the uncovered rest over a strip inside its edge. Where regions cover everything, `whole`
    is not called. size: H, W.
    """
    rest, weights = shares(regions, size)

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        made = [region.D.predict(x[:, :, region.rows, region.columns], sigma, need) for region in regions]
        if rest.any():
            total = [rest.to(field) * field for field in whole.predict(x, sigma, need)]
        else:
            total = [field.new_zeros(*field.shape[:2], *size) for field in made[0]]
        for region, weight, prediction in zip(regions, weights, made, strict=True):
            for sum_, field in zip(total, prediction, strict=True):
                sum_[:, :, region.rows, region.columns] += weight.to(field) * field
        return Prediction(*total)

    return Guided(predict)


def shares(regions: Sequence[Region], size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """How much of each place the whole (H, W) draws, and each region within its rectangle; together 1."""
    fade = max(
        1, min(min(r.rows.stop - r.rows.start, r.columns.stop - r.columns.start) for r in regions) // 8
    )
    covered, total = torch.zeros(size), torch.zeros(size)
    raw = [torch.outer(ramps(r.rows, size[0], fade), ramps(r.columns, size[1], fade)) for r in regions]
    for region, weight in zip(regions, raw, strict=True):
        covered[region.rows, region.columns] = 1
        total[region.rows, region.columns] += weight
    around = F.pad(covered[None, None], [fade] * 4, mode="replicate")
    near = 1 - F.avg_pool2d(around, 2 * fade + 1, stride=1)[0, 0]  # share of what is not covered nearby
    rest = torch.where(covered > 0, (2 * near).clamp(0, 1), torch.ones(()))
    inside = ((1 - rest) / total.clamp_min(1e-9)).nan_to_num()
    return rest, [w * inside[r.rows, r.columns] for r, w in zip(regions, raw, strict=True)]


def ramps(span: slice, size: int, fade: int) -> Tensor:
    """Weights of a span: 1, less over the last `fade` places before ends that are not those of 0 to size."""
    places = torch.arange(span.start, span.stop)
    before = torch.full((len(places),), fade) if span.start == 0 else places - span.start
    after = torch.full((len(places),), fade) if span.stop == size else span.stop - 1 - places
    return ((torch.minimum(before, after) + 1) / (fade + 1)).clamp(max=1)
