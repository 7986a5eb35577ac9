"""Softmax attention; attention.cpp is its fast path."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.kernels.build import Kernel, call, instructions

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def plain(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    """(B, T, C) of (B, T, C) queries over (B, S, C) keys and values, split into `num_heads`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def fast(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    strides = (ctypes.c_long * 6)(*(stride for x in (q, k, v) for stride in x.stride()[:2]))
    sizes = (len(q), num_heads, q.shape[1], k.shape[1], q.shape[2] // num_heads)
    call(f"attention_{DTYPES[q.dtype]}", q, k, v, out, strides, *sizes)
    return out


def fits(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> bool:
    # with AMX, torch's own is faster than this one, which has none
    return (
        not causal
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and q.shape[2] // num_heads % 2 == 0
        and all(x.stride(2) == 1 and x.stride(1) % 2 == 0 for x in (q, k, v))
        and not (q.dtype == torch.bfloat16 and "amx_bf16" in instructions())
    )


def example() -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, num, 48, generator=generator, dtype=torch.float32).bfloat16() for num in (51, 70, 70)
    )
    return q, k, v, 2


attention = Kernel(plain, fast, fits, example)
