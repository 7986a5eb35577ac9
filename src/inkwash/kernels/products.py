"""Convolutions that learn, with gradients as matrix products and forward convolutions, which torch does best.

oneDNN's gradients by weights use AMX's tiles less well than its products do. B batch, H W pixels, C channels, K side of
the weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from inkwash.kernels.kernel import Kernel

LAST = torch.channels_last


class Gradient(torch.autograd.Function):
    """Gradients with respect to x, the weights and the bias; that of the weights is rounded to x's dtype once."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        ctx.bias_type = None if bias is None else bias.dtype
        return kernel.fast(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, by_x, by_weight, by_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=LAST)
        side, stride, padding = weight.shape[2], ctx.stride, ctx.padding
        return (
            None,
            input_gradient(grad, weight.to(grad.dtype), ctx.shape, stride, padding) if by_x else None,
            weights_gradient(x, grad, side, stride, padding).to(weight.dtype) if by_weight else None,
            grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type) if by_bias else None,
            None,
            None,
        )


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), stride, padding)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """The gradient by x of `shape` (B, C, H, W): where no pixel is passed over, the convolution by the turned weights."""
    if stride > 1:
        return conv2d_input(shape, weight, grad, stride, padding)
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=LAST)
    return F.conv2d(grad, turned, padding=weight.shape[2] - 1 - padding)


def weights_gradient(x: Tensor, grad: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """The (out, C, K, K) gradient by the weights, as one product over all pixels of what each of them saw."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    seen = padded.unfold(1, side, stride).unfold(2, side, stride).permute(0, 1, 2, 4, 5, 3)
    made = grad.permute(0, 2, 3, 1).flatten(0, 2).t() @ seen.flatten(3).flatten(0, 2)
    return made.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
