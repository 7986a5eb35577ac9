"""Random features with known distributions."""

import torch
from torch import Tensor


def gaussian_samples(seed: int, num: int, dim: int) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def features(num: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated Gaussian features (num, dim)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator)
    return torch.randn(num, dim, generator=generator) @ mix + shift
