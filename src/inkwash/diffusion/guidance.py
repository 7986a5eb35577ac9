"""Guidance: from denoisers to a denoiser. B batch, T tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser


@dataclass(frozen=True)
class Guided:
    """A Denoiser that is guided, and can give what it predicts without its guidance, from the same calls."""

    predict: Denoiser
    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of x and sigma, the guided x0 and the unguided

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.predict(x, sigma)


def cfg(
    denoise: ConditionedDenoiser, cond: Conditioning, uncond: Conditioning, scale: float, batched: bool = True
) -> Guided:
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
) -> Guided:
    """Guidance by several conditions a picture: uncond + scale * sum of weight_i * (cond_i - uncond).

    Source: Liu et al. 2022, equation 11. conds: for each picture of the batch its conditions, without a batch
    axis, and their weights. unconds: one for each picture. batched: what has equal shapes goes through the network
    in one call. Raises ValueError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"cfg_scale {scale} is not finite")
    wanted = [(k, cond, weight) for k, parts in enumerate(conds) for cond, weight in parts]
    plain = scale == 1 and all([weight for _, weight in parts] == [1] for parts in conds)
    rows = [k for k, _, _ in wanted] + list(range(len(unconds)))
    given = [cond for _, cond, _ in wanted] + list(unconds)

    @cache
    def stacked(num: int) -> list[tuple[list[int], Conditioning]]:
        """Of the first so many, what is called together."""
        groups: dict[tuple, list[int]] = {}
        for i, cond in enumerate(given[:num]):
            shapes = tuple(value.shape for value in cond.values())
            groups.setdefault((shapes, batched or i < len(wanted)), []).append(i)
        return [
            (some, {key: torch.stack([given[i][key] for i in some]) for key in given[some[0]]})
            for some in groups.values()
        ]

    def predictions(x: Tensor, sigma: Tensor, num: int) -> list[Tensor]:
        sigma = sigma.expand(len(x))
        made: dict[int, Tensor] = {}
        for some, cond in stacked(num):
            at = [rows[i] for i in some]
            made |= zip(some, denoise(x[at], sigma[at], cond), strict=True)
        return [made[i] for i in range(num)]

    def parts(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        made = predictions(x, sigma, len(given))
        without = made[len(wanted) :]
        total = list(without)
        for i, (k, _, weight) in enumerate(wanted):
            total[k] = total[k] + scale * weight * (made[i] - without[k])
        return torch.stack(total), torch.stack(without)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack(predictions(x, sigma, len(wanted))) if plain else parts(x, sigma)[0]

    return Guided(guided, parts)


def keep_known(D: Denoiser, latent: Tensor, mask: Tensor, noise: Tensor) -> Denoiser:
    """Inpainting with any network: what is known stays, at every step with the noise that belongs to it.

    latent, noise: (B, C, H, W), the known picture and its noise. mask: 1 where to draw, 0 where it is known,
    anything between; it broadcasts. Source: Lugmayr et al. 2022, equation 8, without resampling.
    """

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.device, x.dtype).expand(len(x)).view(-1, 1, 1, 1)
        return mask * x + (1 - mask) * (latent + level * noise)

    def kept(x0: Tensor) -> Tensor:
        return mask * x0 + (1 - mask) * latent

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        return kept(D(seen(x, sigma), sigma))

    if not isinstance(D, Guided):
        return masked
    parts = D.parts

    def masked_parts(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        guided, unguided = parts(seen(x, sigma), sigma)
        return kept(guided), kept(unguided)

    return Guided(masked, masked_parts)
