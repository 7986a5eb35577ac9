"""Sinusoidal embeddings. B batch, D width."""

import math

import torch
from torch import Tensor


def timestep_embedding(
    t: Tensor, dim: int, max_period: float = 10000.0, *, sin_first: bool = False, freq_shift: int = 0
) -> Tensor:
    """Sinusoids of `t` (B,), in any real unit, as (B, dim) float32: cosines, then sines.

    Used for timesteps and, in SDXL, for sizes and crops. An odd `dim` ends in a zero column. sin_first, and a
    freq_shift of 1, by which the last frequency is 1/max_period: as in the checkpoints of Ho et al. 2020; the order
    and frequencies of all later ones are those of Dhariwal and Nichol 2021.
    Source: Vaswani et al. 2017, section 3.5.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    args = t.float()[:, None] * torch.exp(-math.log(max_period) * steps)[None]
    halves = (args.sin(), args.cos()) if sin_first else (args.cos(), args.sin())
    return torch.nn.functional.pad(torch.cat(halves, dim=-1), (0, dim % 2))
