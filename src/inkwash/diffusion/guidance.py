"""Guidance: from denoisers to a denoiser. B batch, T tokens."""

import math

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser


def cfg(
    denoise: ConditionedDenoiser, cond: Conditioning, uncond: Conditioning, scale: float, batched: bool = True
) -> Denoiser:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho and Salimans 2022), so 1 is off.

    batched: both in one call of twice the batch, where their shapes agree; else in two. The numbers are the
    same up to rounding. Raises ValueError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"cfg_scale {scale} is not finite")
    together = batched and all(cond[k].shape == uncond[k].shape for k in cond)
    both = {k: torch.cat([cond[k], uncond[k]]) for k in cond} if together else {}

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 1:
            return denoise(x, sigma, cond)
        if together:
            sigma = sigma.expand(len(x)).repeat(2)
            with_cond, without = denoise(torch.cat([x, x]), sigma, both).chunk(2)
        else:
            with_cond, without = denoise(x, sigma, cond), denoise(x, sigma, uncond)
        return without + scale * (with_cond - without)

    return guided
