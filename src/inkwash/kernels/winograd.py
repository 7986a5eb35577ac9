"""3 x 3 convolutions and their gradients in fewer products; winograd.cpp is their fast path.

Lavin and Gray 2016, F(2x2, 3x3): 4/9 of the products of a convolution, 1/4 where it follows a doubling. They round
what is multiplied to bfloat16 as others do, after sums that double its noise. B batch, H W pixels, C channels.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inkwash.kernels.cpu import has_amx
from inkwash.kernels.kernel import Kernel
from inkwash.kernels.library import call

LAST = torch.channels_last
LEAST_PIXELS = (
    256  # of a picture's result: under them the weights, which are transformed in each call, outweigh it
)
LEAST_CHANNELS = 32


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, doubled: bool, halved: bool = False, turned: bool = False
) -> Tensor:
    """The bfloat16 (B, C, H, W) x convolved by (out, C, 3, 3) weights, padded by 1.

    doubled: each pixel of x is first made 2 x 2. halved: the sum of each 2 x 2 pixels of the result. turned: the weights
    are (C, out, 3, 3), and turned round, by which the result is a convolution's gradient by what it saw.
    """
    size = [2 * side if doubled else side for side in x.shape[2:]]
    num = weight.shape[1] if turned else len(weight)
    shape = (len(x), num, *(side // 2 if halved else side for side in size))
    out = torch.empty(shape, dtype=x.dtype, memory_format=LAST)
    sizes = (ctypes.c_long * 8)(len(x), *size, x.shape[1], num, doubled, halved, turned)
    of = "float32" if weight.dtype == torch.float32 else "bfloat16"
    offset = None if bias is None else bias.float()
    call(f"winograd_{of}", x, weight.contiguous(memory_format=LAST), offset, out, sizes)
    return out


def weights_gradient(x: Tensor, grad: Tensor, doubled: bool) -> Tensor:
    """The float32 (out, C, 3, 3) gradient by the weights of a convolution that saw x, of its result's gradient."""
    out = torch.empty(grad.shape[1], x.shape[1], 3, 3, dtype=torch.float32, memory_format=LAST)
    sizes = (ctypes.c_long * 8)(len(x), *grad.shape[2:], x.shape[1], grad.shape[1], doubled, 0, 0)
    call("winograd_weights_gradient", x, grad, out, sizes)
    return out


class Gradient(torch.autograd.Function):
    """Gradients with respect to x, the weights and the bias, of a convolution with stride and padding or after doubling."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, *convolution: int
    ) -> Tensor:
        learns = ctx.needs_input_grad[2]
        ctx.save_for_backward(x if learns else None, weight)
        ctx.doubled, ctx.rest = not convolution, [None] * len(convolution)
        ctx.bias_type = None if bias is None else bias.dtype
        return convolved(x, weight, bias, ctx.doubled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        _, by_x, by_weight, by_bias, *_ = ctx.needs_input_grad
        return (
            None,
            convolved(grad, weight, None, False, halved=ctx.doubled, turned=True) if by_x else None,
            weights_gradient(x, grad, ctx.doubled).to(weight.dtype) if by_weight else None,
            grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type) if by_bias else None,
            *ctx.rest,
        )


def saves(x: Tensor, weight: Tensor, pixels: int) -> bool:
    """Return True if drawing this convolution, of so many pixels a picture, is faster than oneDNN's.

    The batch does not matter, so that a picture is the same in each. AMX multiplies faster than this leaves out products.
    """
    return (
        pixels >= LEAST_PIXELS
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and not has_amx()
        and fits(x, weight)
    )


def fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and weight.dtype in (x.dtype, torch.float32)
        and weight.shape[2:] == (3, 3)
        and x.shape[1] == weight.shape[1]
        and weight.shape[0] % 2 == weight.shape[1] % 2 == 0
        and x.is_contiguous(memory_format=LAST)
    )
