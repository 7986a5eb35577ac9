"""Convolutions; convolve.cpp is their fast path, and linear.cpp that of convolutions by single pixels."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels import products, winograd
from inkwash.kernels.cpu import has_amx
from inkwash.kernels.kernel import DTYPES, Kernel, left_to_torch
from inkwash.kernels.library import amx, call
from inkwash.kernels.linear import linear
from inkwash.kernels.threads import FEW_PIXELS, fixed_order
from inkwash.kernels.transposed import Gradient

# pixels: above, oneDNN is as fast or faster, since its repacking of the weights pays there; with AMX that is measured
FEW = 1024
MUCH = 1 << 26  # products of a convolution


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """F.conv2d of (B, C, H, W) by square (out, C, K, K) weights."""
    height, width = out_size(x, weight, stride, padding)
    with fixed_order(x, weight, len(x) * height * width, FEW_PIXELS):
        return F.conv2d(x, weight, bias, stride, padding)


def fast_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    if single(weight, stride, padding) and is_linear(x, weight):
        pixels = linear.fast(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias)
        return pixels.permute(0, 3, 1, 2)
    height, width = out_size(x, weight, stride, padding)
    shape = (len(x), len(weight), height, width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sizes = (len(x), *x.shape[2:], x.shape[1], weight.shape[2], stride, padding, height, width, len(weight))
    by = "amx" if tiled(x, weight) else DTYPES[x.dtype]
    call(f"convolve_{by}", x, weight, bias, None, out, (ctypes.c_long * 10)(*sizes))
    return out


def fits_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    if left_to_torch(x) or (x.dtype == torch.bfloat16 and has_amx() and not tiled(x, weight)):
        return False
    height, width = out_size(x, weight, stride, padding)
    pixels = len(x) * height * width
    return (
        x.dtype in DTYPES
        and x.dtype == weight.dtype
        and x.shape[1] == weight.shape[1]
        # how oneDNN sums up single pixels, if they are fewer or more, depends on the number of threads
        and (
            (pixels >= 16 and (pixels <= FEW or tiled(x, weight)))
            or (single(weight, stride, padding) and (pixels < 16 or is_linear(x, weight)))
        )
        and x.shape[1] % 2 == 0
        and all(some.is_contiguous(memory_format=torch.channels_last) for some in (x, weight))
    )


def tiled(x: Tensor, weight: Tensor) -> bool:
    """Return True if the sizes are multiples of AMX's tiles, which are multiplied whole."""
    return x.dtype == torch.bfloat16 and x.shape[1] % 32 == 0 and len(weight) % 16 == 0 and amx()


def single(weight: Tensor, stride: int, padding: int) -> bool:
    """Return True for a 1x1 convolution with stride 1 and no padding."""
    return (weight.shape[2], stride, padding) == (1, 1, 0)


def is_linear(x: Tensor, weight: Tensor) -> bool:
    """Return True if the linear kernel can take the pixels as rows."""
    return linear.fits(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], None)


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
        for shape in ((2, 96, 7, 9), (48, 96, 3, 3))
    )
    return x, weight, torch.arange(48, dtype=torch.bfloat16), 1, 1


def fast_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return winograd.convolved(x, weight, bias, doubled=False)


def fits_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    return (
        stride == padding == 1
        and winograd.fits(x, weight)
        and worth_measuring(x, weight, x.shape[2] * x.shape[3])
    )


def saves_products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    return stride == padding == 1 and winograd.saves(x, weight, x.shape[2] * x.shape[3])


def fast_products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    return products.convolved(x, weight, bias, stride, padding)


def fits_products(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    height, width = out_size(x, weight, stride, padding)
    return (
        x.dtype == torch.bfloat16
        and x.shape[1] == weight.shape[1]
        and weight.shape[2] > 1
        and padding < weight.shape[2]
        and worth_measuring(x, weight, height * width)
    )


def worth_measuring(x: Tensor, weight: Tensor, pixels: int) -> bool:
    """Return True if a convolution of so many pixels takes about a millisecond or more."""
    return len(x) * pixels * weight.numel() >= MUCH


conv2d_winograd = Kernel(
    plain_conv2d, fast_winograd, fits_winograd, example_conv2d, winograd.Gradient, inputs=3
)
conv2d_frozen = Kernel(plain_conv2d, fast_winograd, saves_products, example_conv2d)
conv2d_products = Kernel(
    plain_conv2d, fast_products, fits_products, example_conv2d, products.Gradient, inputs=3
)
conv2d = Kernel(
    plain_conv2d,
    fast_conv2d,
    fits_conv2d,
    example_conv2d,
    Gradient,
    others=(conv2d_winograd, conv2d_products),
    frozen=conv2d_frozen,
    amx=True,
)
