"""The gated activation of the transformers' feed-forward; geglu.cpp is its fast path."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from inkwash.kernels.kernel import Kernel
from inkwash.kernels.library import call


def plain(x: Tensor) -> Tensor:
    """x * gelu(gate) of (..., 2N), which holds x before its gate; (..., N)."""
    x, gate = x.chunk(2, dim=-1)
    return x * F.gelu(gate)


def fast(x: Tensor) -> Tensor:
    width = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
    call("geglu_bfloat16", x, out, out.numel() // width, width)
    return out


class Gradient(torch.autograd.Function):
    """The compiled GEGLU with the gradient of its plain twin."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return fast(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(x)
        call("geglu_gradient_bfloat16", x, grad, out, grad.numel() // grad.shape[-1], grad.shape[-1])
        return None, out


def fits(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.is_contiguous()


def example() -> tuple[Tensor]:
    return (torch.linspace(-6, 6, 5 * 62).reshape(5, 62).bfloat16(),)


geglu = Kernel(plain, fast, fits, example, Gradient)
