"""GroupNorm, with the SiLU that often follows; norm.cpp is its fast path, norm_gradient.cpp its gradients' one."""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from inkwash.kernels.kernel import DTYPES, Kernel
from inkwash.kernels.library import call


def plain(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """The (B, C, H, W) x, normed over `groups` of its channels, then through SiLU where wanted."""
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def fast(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    return forward(x, groups, weight, bias, eps, silu, None)


def forward(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, stats: Tensor | None
) -> Tensor:
    """Group norm by the kernel. stats: (B, groups, 2) float32, filled with means and reciprocal standard deviations."""
    out = torch.empty_like(x)
    name = f"norm_{DTYPES[x.dtype]}"
    call(name, x, weight.float(), bias.float(), out, stats, sizes(x, groups, silu), float(eps))
    return out


def sizes(x: Tensor, groups: int, silu: bool) -> ctypes.Array[Any]:
    return (ctypes.c_long * 5)(len(x), x.shape[2] * x.shape[3], x.shape[1], groups, silu)


class Gradient(torch.autograd.Function):
    """Keeps x and the statistics; what SiLU saw is computed again."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
    ) -> Tensor:
        stats = torch.empty(len(x), groups, 2)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.silu = silu
        return forward(x, groups, weight, bias, eps, silu, stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        grad, out = grad.contiguous(memory_format=torch.channels_last), torch.empty_like(x)
        by_weight, by_bias = torch.empty(2, x.shape[1])
        name, about = f"norm_gradient_{DTYPES[x.dtype]}", sizes(x, stats.shape[1], ctx.silu)
        call(name, x, weight.float(), bias.float(), stats, grad, out, by_weight, by_bias, about)
        return None, out, None, by_weight.to(weight.dtype), by_bias.to(bias.dtype), None, None


def fits(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> bool:
    return (
        x.ndim == 4
        and x.dtype in DTYPES
        and x.shape[1] == len(weight) == len(bias)
        and weight.dtype == bias.dtype
        and weight.dtype in (x.dtype, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def example() -> tuple[Tensor, int, Tensor, Tensor, float, bool]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 17, 19, generator=generator, dtype=torch.float32).bfloat16() + 1
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 12, generator=generator, dtype=torch.float32).bfloat16()
    return x, 3, weight, bias, 1e-5, True


group_norm = Kernel(plain, fast, fits, example, Gradient, inputs=4)
