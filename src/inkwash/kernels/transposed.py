"""A convolution whose weights are not trained, and its gradient; transposed.cpp is the fast path."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from inkwash.kernels.kernel import Kernel
from inkwash.kernels.library import call


class Gradient(torch.autograd.Function):
    """Keeps no pixels: the weights are all that the gradient takes."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return kernel.fast(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return None, transposed(grad, weight, ctx.shape, ctx.stride, ctx.padding), None, None, None, None


def transposed(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """The gradient by x, of `shape` (B, C, H, W), of a convolution whose result has the gradient (B, out, H', W')."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    if grad.dtype != torch.bfloat16 or len(weight) % 2:
        return conv2d_input(shape, weight, grad, stride, padding)
    out = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last)
    sizes = (shape[0], *shape[2:], shape[1], weight.shape[2], stride, padding, *grad.shape[2:], len(weight))
    call("transposed_bfloat16", grad, weight, out, (ctypes.c_long * 10)(*sizes))
    return out
