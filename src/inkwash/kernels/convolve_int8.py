"""Convolutions in eight bits; convolve_int8.cpp is their fast path. B batch, C channels, N outputs."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels import int8
from inkwash.kernels.int8 import Packed
from inkwash.kernels.kernel import DTYPES, Kernel
from inkwash.kernels.library import call

MOST = 7396  # channels whose sums fit into 31 bits: 2**31 / (9 * 254 * 127)


def pack(weight: Tensor) -> Packed:
    """Each output of (N, C, 3, 3) in whole numbers from -127 to 127, channel after channel of a pixel. C is a multiple
    of 4."""
    return int8.pack(weight.permute(0, 2, 3, 1).flatten(1))


def plain(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """(B, N, H, W) of (B, C, H, W) x, padded by one, and packed weights.

    Each picture is rounded to steps of its own, 254 from its least value to its largest, one of them 0."""
    weight = int8.unpacked(packed).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
    low, high = x.float().flatten(1).aminmax(dim=1, keepdim=True)
    step = (high.clamp_min(0) / 254 - low.clamp_max(0) / 254).clamp_min(1e-30)[:, :, None, None]
    made = F.conv2d((x.float() / step).round(), weight, padding=1) * step * packed.scale[:, None, None]
    return (made if bias is None else made + bias.float()[:, None, None]).to(x.dtype)


def fast(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    batch, channels, height, width = x.shape
    shape = (batch, len(packed.scale), height, width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sizes = (ctypes.c_long * 5)(batch, height, width, channels, len(packed.scale))
    call(f"convolve_int8_{int8.variant(channels, x.dtype)}", x, *packed, bias, out, sizes)
    return out


def fits(x: Tensor, packed: Packed, bias: Tensor | None) -> bool:
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and 9 * x.shape[1] == 4 * packed.weight.shape[1]
        and x.shape[1] <= MOST
        and x.is_contiguous(memory_format=torch.channels_last)
        and (bias is None or bias.dtype == x.dtype)
    )


def example() -> tuple[Tensor, Packed, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float32)
        for shape in ((2, 64, 5, 19), (70, 64, 3, 3))
    )
    bias = torch.arange(70, dtype=torch.float32)
    return F.silu(x).contiguous(memory_format=torch.channels_last), pack(weight), bias


conv2d_int8 = Kernel(plain, fast, fits, example)
