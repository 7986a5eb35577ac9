"""Convolutions and linear layers; convolve.cpp is their fast path."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels.build import Kernel, call, processor
from inkwash.kernels.transposed import Gradient

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FEW = 1024  # pixels: above, oneDNN is as fast or faster, since its repacking of the weights pays there


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """F.conv2d of (B, C, H, W) by square (out, C, K, K) weights."""
    return F.conv2d(x, weight, bias, stride, padding)


def fast_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    height, width = out_size(x, weight, stride, padding)
    shape = (len(x), len(weight), height, width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sizes = (len(x), *x.shape[2:], x.shape[1], weight.shape[2], stride, padding, height, width, len(weight))
    call(f"convolve_{DTYPES[x.dtype]}", x, weight, bias, None, out, (ctypes.c_long * 10)(*sizes))
    return out


def fits_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    height, width = out_size(x, weight, stride, padding)
    return (
        x.dtype in DTYPES
        and x.dtype == weight.dtype
        and 16 <= len(x) * height * width <= FEW
        and x.shape[1] % 2 == 0
        and all(some.is_contiguous(memory_format=torch.channels_last) for some in (x, weight))
    )


def out_size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    kernel = weight.shape[2]
    return (x.shape[2] + 2 * padding - kernel) // stride + 1, (
        x.shape[3] + 2 * padding - kernel
    ) // stride + 1


def example_conv2d() -> tuple[Tensor, Tensor, Tensor, int, int]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float32)
        .bfloat16()
        .contiguous(memory_format=torch.channels_last)
        for shape in ((2, 34, 7, 9), (21, 34, 3, 3))
    )
    return x, weight, torch.arange(21, dtype=torch.bfloat16), 1, 1


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty((*x.shape[:-1], len(weight)), dtype=x.dtype)
    rows = x.numel() // x.shape[-1]
    sizes = (1, 1, rows, x.shape[-1], 1, 1, 0, 1, rows, len(weight))
    call(f"convolve_{DTYPES[x.dtype]}", x, weight, bias, None, out, (ctypes.c_long * 10)(*sizes))
    return out


def fits_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # MKL, which torch asks in float32, runs at half its speed on AMD's processors; in bfloat16 it asks oneDNN
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() >= 16 * x.shape[-1]
        and x.is_contiguous()
        and weight.is_contiguous()
        and processor().get("vendor_id") == "AuthenticAMD"
    )


def example_linear() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(num, 33, generator=generator, dtype=torch.float32) for num in (150, 50))
    return x, weight, torch.arange(50, dtype=torch.float32)


conv2d = Kernel(plain_conv2d, fast_conv2d, fits_conv2d, example_conv2d, Gradient)
linear = Kernel(F.linear, fast_linear, fits_linear, example_linear)
