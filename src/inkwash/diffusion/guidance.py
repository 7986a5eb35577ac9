"""Guidance: from denoisers to a denoiser. B batch, T tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser


def cfg(
    denoise: ConditionedDenoiser, cond: Conditioning, uncond: Conditioning, scale: float, batched: bool = True
) -> Denoiser:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho and Salimans 2022), so 1 is off.

    cond, uncond: of the whole batch. batched: both in one call of twice the batch, where their shapes agree; else
    in two. The numbers are the same up to rounding. Raises ValueError for a scale that is not finite.
    """
    conds, unconds = (
        [dict(zip(all_, rows, strict=True)) for rows in zip(*all_.values(), strict=True)]
        for all_ in (cond, uncond)
    )
    return compose(denoise, [[(one, 1.0)] for one in conds], unconds, scale, batched)


def compose(
    denoise: ConditionedDenoiser,
    conds: Sequence[Sequence[tuple[Conditioning, float]]],
    unconds: Sequence[Conditioning],
    scale: float,
    batched: bool = True,
) -> Denoiser:
    """Guidance by several conditions a picture: uncond + scale * sum of weight_i * (cond_i - uncond).

    Source: Liu et al. 2022, equation 11. conds: for each picture of the batch its conditions, without a batch
    axis, and their weights. unconds: one for each picture. batched: what has equal shapes goes through the network
    in one call. Raises ValueError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"cfg_scale {scale} is not finite")
    wanted = [(k, cond, weight) for k, parts in enumerate(conds) for cond, weight in parts]
    plain = scale == 1 and all([weight for _, weight in parts] == [1] for parts in conds)
    rows = [k for k, _, _ in wanted] + ([] if plain else list(range(len(unconds))))
    given = [cond for _, cond, _ in wanted] + ([] if plain else list(unconds))

    groups: dict[tuple, list[int]] = {}  # of what is called together
    for i, cond in enumerate(given):
        shapes = tuple(value.shape for value in cond.values())
        groups.setdefault((shapes, batched or i < len(wanted)), []).append(i)
    stacked = [
        (some, {key: torch.stack([given[i][key] for i in some]) for key in given[some[0]]})
        for some in groups.values()
    ]

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.expand(len(x))
        made: dict[int, Tensor] = {}
        for some, cond in stacked:
            at = [rows[i] for i in some]
            made |= zip(some, denoise(x[at], sigma[at], cond), strict=True)
        if plain:
            return torch.stack([made[i] for i in range(len(wanted))])
        without = [made[len(wanted) + k] for k in range(len(unconds))]
        total = list(without)
        for i, (k, _, weight) in enumerate(wanted):
            total[k] = total[k] + scale * weight * (made[i] - without[k])
        return torch.stack(total)

    return guided


def keep_known(D: Denoiser, latent: Tensor, mask: Tensor, noise: Tensor) -> Denoiser:
    """Inpainting with any network: what is known stays, at every step with the noise that belongs to it.

    latent, noise: (B, C, H, W), the known picture and its noise. mask: 1 where to draw, 0 where it is known,
    anything between; it broadcasts. Source: Lugmayr et al. 2022, equation 8, without resampling.
    """

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.device, x.dtype).expand(len(x)).view(-1, 1, 1, 1)
        seen = mask * x + (1 - mask) * (latent + level * noise)
        return mask * D(seen, sigma) + (1 - mask) * latent

    return masked
