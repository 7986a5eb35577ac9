"""Linear layers fused with operations on their output; linear.cpp and, in float32, convolve.cpp are their fast paths."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels.cpu import has_amx, processor
from inkwash.kernels.geglu import geglu
from inkwash.kernels.kernel import Kernel
from inkwash.kernels.library import amx, call
from inkwash.kernels.threads import FEW_ROWS, fixed_order

ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}  # in linear.cpp's order


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """F.linear of (..., K) by (N, K) weights, and the (..., N) residual added where there is one."""
    with fixed_order(x, weight, x.numel() // max(1, x.shape[-1]), FEW_ROWS):
        y = F.linear(x, weight, bias)
    return y if residual is None else y + residual


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    if x.dtype == torch.bfloat16:
        return in_bfloat16(x, weight, bias, residual)
    out = torch.empty((*x.shape[:-1], len(weight)), dtype=x.dtype)
    rows, k = x.numel() // x.shape[-1], x.shape[-1]
    sizes = (1, 1, rows, k, 1, 1, 0, 1, rows, len(weight))  # a convolution of a picture of one row
    call("convolve_float32", x, weight, bias, residual, out, (ctypes.c_long * 10)(*sizes))
    return out


def in_bfloat16(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    gated: bool = False,
    activation: int = 0,
) -> Tensor:
    """The layer by linear.cpp, which numbers the activations; 0 is none."""
    k, width = x.shape[-1], len(weight) // (1 + gated)
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
    shape = (ctypes.c_long * 5)(x.numel() // k, k, width, gated, activation)
    call("linear_amx" if tiled(k) else "linear_bfloat16", x, weight, bias, residual, out, shape)
    return out


def fits_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> bool:
    if residual is not None and (
        residual.dtype != x.dtype
        or residual.shape != (*x.shape[:-1], len(weight))
        or not residual.is_contiguous()
    ):
        return False
    if not (
        x.dtype == weight.dtype
        and x.shape[-1] == weight.shape[1]
        and x.numel() >= 16 * x.shape[-1]
        and x.is_contiguous()
        and weight.is_contiguous()
    ):
        return False
    if x.dtype == torch.bfloat16:  # with AMX, torch's own is faster than one that has none
        return tiled(x.shape[-1]) if has_amx() else x.shape[-1] % 2 == 0
    # MKL, which torch asks in float32, runs at half its speed on AMD's processors
    return x.dtype == torch.float32 and processor().get("vendor_id") == "AuthenticAMD"


def tiled(inputs: int) -> bool:
    """Return True if a layer of so many inputs multiplies by AMX's tiles, which are multiplied whole."""
    return inputs % 32 == 0 and amx()


def example_linear() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, residual = (
        torch.randn(shape, generator=generator, dtype=torch.float32).bfloat16()
        for shape in ((150, 96), (50, 96), (150, 50))
    )
    return x, weight, torch.arange(50, dtype=torch.bfloat16), residual


def plain_geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`geglu` of a linear layer of (2N, K) weights; (..., N)."""
    return geglu(linear(x, weight, bias))


def fast_geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return in_bfloat16(x, weight, bias, gated=True)


def fits_geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return x.dtype == torch.bfloat16 and fits_linear(x, weight, bias)


def example_geglu() -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, _ = example_linear()
    return x, weight, bias


def plain_activated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """A linear layer and one of ACTIVATIONS after it."""
    return ACTIVATIONS[activation](linear(x, weight, bias))


def fast_activated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return in_bfloat16(x, weight, bias, activation=1 + list(ACTIVATIONS).index(activation))


def fits_activated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> bool:
    return fits_geglu(x, weight, bias)


def example_activated() -> tuple[Tensor, Tensor, Tensor, str]:
    return *example_geglu(), "quick_gelu"


linear = Kernel(plain_linear, fast_linear, fits_linear, example_linear, amx=True)
activated_linear = Kernel(plain_activated, fast_activated, fits_activated, example_activated, amx=True)
geglu_linear = Kernel(plain_geglu, fast_geglu, fits_geglu, example_geglu, amx=True)
