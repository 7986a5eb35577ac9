"""A convolution after doubling: of the 3 x 3 pixels that it sees only 2 x 2 differ, so 4/9 of the work does."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels import winograd
from inkwash.kernels.convolve import conv2d, worth_measuring
from inkwash.kernels.kernel import Kernel

MANY = 1024  # pixels before doubling: under them adding up the weights takes what is saved


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The (B, C, H, W) x doubled by nearest neighbour, then convolved by (out, C, 3, 3) weights, padded by 1."""
    return conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, 1, 1)


def fast_upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    height, width = x.shape[2:]
    shape = (len(x), len(weight), 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    for i, rows in enumerate(halves(weight.float(), 2)):
        for j, both in enumerate(halves(rows, 3)):
            both = both.to(x.dtype).contiguous(memory_format=torch.channels_last)
            made = F.conv2d(x, both, bias, padding=1)
            out[:, :, i::2, j::2] = made[:, :, i : i + height, j : j + width]
    return out


def halves(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The two taps that even places see after doubling, and the two that odd places see, from three taps."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)


def fits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.shape[1] == weight.shape[1]
        and x.shape[2] * x.shape[3] >= MANY
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float32).bfloat16()
        for shape in ((1, 8, 32, 33), (8, 8, 3, 3))
    )
    return x.contiguous(memory_format=torch.channels_last), weight, torch.arange(8, dtype=torch.bfloat16)


def fast_winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return winograd.convolved(x, weight, bias, doubled=True)


def fits_winograd(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return winograd.fits(x, weight) and worth_measuring(x, weight, 4 * x.shape[2] * x.shape[3])


def saves_products(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return winograd.saves(x, weight, 4 * x.shape[2] * x.shape[3])


upsample_winograd = Kernel(plain, fast_winograd, fits_winograd, example, winograd.Gradient, inputs=3)
upsample_frozen = Kernel(plain, fast_winograd, saves_products, example)
upsample = Kernel(
    plain, fast_upsample, fits, example, others=(upsample_winograd,), frozen=upsample_frozen, amx=True
)
