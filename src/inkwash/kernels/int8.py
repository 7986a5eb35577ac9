"""Linear layers in eight bits; int8.cpp is their fast path. K inputs, N outputs, P = N / 64, rounded up."""

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels.geglu import geglu
from inkwash.kernels.kernel import DTYPES, Kernel
from inkwash.kernels.library import amx, call

COLUMNS = 64  # of a panel


class Packed(NamedTuple):
    """Weights in eight bits, in the order in which the fast path reads them."""

    weight: Tensor  # int8 (P, K/4, 64, 4), the last panel filled up with zeros
    scale: Tensor  # float32 (N,), what a row of the weights is to be multiplied by
    sums: Tensor  # int32 (N,), of a row


def pack(weight: Tensor) -> Packed:
    """Each row of (N, K) in whole numbers from -127 to 127. K is a multiple of 4."""
    panels = weight.split(COLUMNS)  # one at a time stays in the processor's cache
    return Packed(*(torch.cat(some) for some in zip(*map(panel, panels), strict=True)))


def panel(rows: Tensor) -> Packed:
    rows = rows.float()
    # twice as many passes as aminmax, in a twentieth of its time
    scale = torch.maximum(rows.amax(1), -rows.amin(1)).clamp_min(1e-30) / 127
    whole = (rows / scale[:, None]).round_().to(torch.int8)
    words = F.pad(whole, (0, 0, 0, -len(rows) % COLUMNS)).view(torch.int32).t().contiguous()
    return Packed(words.view(torch.int8).view(1, -1, COLUMNS, 4), scale, whole.sum(1, dtype=torch.int32))


def unpacked(packed: Packed) -> Tensor:
    """float32 (N, K), whole numbers."""
    return packed.weight.transpose(1, 2).flatten(2).flatten(0, 1)[: len(packed.scale)].float()


def plain(x: Tensor, packed: Packed, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """(..., N) of x (..., K), each of whose rows is rounded to 127 steps to either side, and packed weights; and the
    (..., N) residual added where there is one."""
    step = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    made = F.linear((x.float() / step).round(), unpacked(packed)) * step * packed.scale
    for more in (bias, residual):
        made = made if more is None else made + more.float()
    return made.to(x.dtype)


def fast(x: Tensor, packed: Packed, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    return layer(x, packed, bias, residual, gated=False)


def layer(x: Tensor, packed: Packed, bias: Tensor | None, residual: Tensor | None, gated: bool) -> Tensor:
    channels = len(packed.scale) // (2 if gated else 1)
    out = torch.empty((*x.shape[:-1], channels), dtype=x.dtype)
    shape = (ctypes.c_long * 4)(x.numel() // x.shape[-1], x.shape[-1], channels, gated)
    call(f"linear_int8_{variant(x.shape[-1], x.dtype)}", x, *packed, bias, residual, out, shape)
    return out


def variant(width: int, dtype: torch.dtype) -> str:
    """The end of a function's name, for inputs of so many channels: by AMX, if they fill its tiles, and of which type."""
    return f"{'amx_' if width % 64 == 0 and amx() else ''}{DTYPES[dtype]}"


def fits(x: Tensor, packed: Packed, bias: Tensor | None, residual: Tensor | None = None) -> bool:
    others = [more for more in (bias, residual) if more is not None]
    if residual is not None and residual.shape != (*x.shape[:-1], len(packed.scale)):
        return False
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and x.shape[-1] == 4 * packed.weight.shape[1]
        and x.is_contiguous()
        and all(more.dtype == x.dtype and more.is_contiguous() for more in others)
    )


def example() -> tuple[Tensor, Packed, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(num, 64, generator=generator, dtype=torch.float32) for num in (403, 70))
    return x, pack(weight), torch.arange(70, dtype=torch.float32), x.repeat(1, 2)[:, :70].contiguous()


def plain_geglu(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """`geglu` of such a layer's 2N outputs; (..., N)."""
    return geglu(linear_int8(x, packed, bias))


def fast_geglu(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    return layer(x, packed, bias, None, gated=True)


def fits_geglu(x: Tensor, packed: Packed, bias: Tensor | None) -> bool:
    return len(packed.scale) % (2 * COLUMNS) == 0 and fits(x, packed, bias)


def example_geglu() -> tuple[Tensor, Packed, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(num, 64, generator=generator, dtype=torch.float32) for num in (403, 256))
    return x, pack(weight), torch.arange(256, dtype=torch.float32) / 100


linear_int8 = Kernel(plain, fast, fits, example)
geglu_int8 = Kernel(plain_geglu, fast_geglu, fits_geglu, example_geglu)
