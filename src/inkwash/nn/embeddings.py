"""Sinusoidal embeddings. B batch, D width."""

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of `t` (B,), in any real unit, as (B, dim) float32: cosines, then sines.

    Used for timesteps and, in SDXL, for sizes and crops. An odd `dim` ends in a zero column.
    Source: Vaswani et al. 2017, in the order that Ho et al. 2020 and every later checkpoint use.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = t.float()[:, None] * freqs[None]
    embedding = torch.cat([args.cos(), args.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
