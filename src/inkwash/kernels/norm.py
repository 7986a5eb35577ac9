"""GroupNorm, with the SiLU that often follows; norm.cpp is its fast path."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels.kernel import DTYPES, Kernel
from inkwash.kernels.library import call


def plain(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """The (B, C, H, W) x, normed over `groups` of its channels, then through SiLU where wanted."""
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def fast(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    out = torch.empty_like(x)
    sizes = (len(x), x.shape[2] * x.shape[3], x.shape[1], groups)
    call(f"norm_{DTYPES[x.dtype]}", x, weight, bias, out, *sizes, float(eps), int(silu))
    return out


def fits(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> bool:
    return (
        x.ndim == 4
        and x.dtype in DTYPES
        and x.dtype == weight.dtype
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def example() -> tuple[Tensor, int, Tensor, Tensor, float, bool]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 17, 19, generator=generator, dtype=torch.float32).bfloat16() + 1
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 12, generator=generator, dtype=torch.float32).bfloat16()
    return x, 3, weight, bias, 1e-5, True


group_norm = Kernel(plain, fast, fits, example)
