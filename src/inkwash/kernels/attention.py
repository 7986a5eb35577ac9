"""Softmax attention; attention.cpp is its fast path, attention_gradient.cpp its gradients' one in bfloat16.

In bfloat16 its products are AVX-512's, or AMX's where the processor has it.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from inkwash.kernels.kernel import DTYPES, Kernel, left_to_torch
from inkwash.kernels.library import amx, call


def plain(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    """(B, T, C) of (B, T, C) queries over (B, S, C) keys and values, split into `num_heads`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def fast(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    return forward(q, k, v, num_heads, None, causal)


def forward(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, norms: Tensor | None, causal: bool = False
) -> Tensor:
    """Attention by the kernel. norms: (B, num_heads, T) float32, filled with logarithms of the softmax's denominators."""
    out = torch.empty(q.shape, dtype=q.dtype)
    strides = (ctypes.c_long * 6)(*(stride for x in (q, k, v) for stride in x.stride()[:2]))
    sizes = (len(q), num_heads, q.shape[1], k.shape[1], q.shape[2] // num_heads, int(causal))
    by = "amx" if q.dtype == torch.bfloat16 and amx() else DTYPES[q.dtype]
    call(f"attention_{by}", q, k, v, out, norms, strides, *sizes)
    return out


class Gradient(torch.autograd.Function):
    """Keeps q, k, v, the result and the norms; the weights are computed again."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False
    ) -> Tensor:
        norms = torch.empty(len(q), num_heads, q.shape[1])
        out = forward(q, k, v, num_heads, norms)
        ctx.save_for_backward(q, k, v, out, norms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms = ctx.saved_tensors
        if grad.dtype == torch.bfloat16:
            return None, *fast_gradient(q, k, v, out, grad.contiguous(), norms), None, None
        heads = (x.unflatten(-1, (norms.shape[1], -1)).transpose(1, 2) for x in (grad, q, k, v, out))
        made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*heads, norms, 0.0, False)
        return None, *(x.transpose(1, 2).flatten(2) for x in made), None, None


def fast_gradient(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, norms: Tensor
) -> tuple[Tensor, ...]:
    made = tuple(torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    strides = (ctypes.c_long * 6)(*(stride for x in (q, k, v) for stride in x.stride()[:2]))
    heads = norms.shape[1]
    sizes = (ctypes.c_long * 5)(len(q), heads, q.shape[1], k.shape[1], q.shape[2] // heads)
    call("attention_gradient_bfloat16", q, k, v, out, grad, norms, *made, strides, sizes)
    return made


def fits(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> bool:
    return (
        not (
            causal and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        )  # no gradient of that
        and not left_to_torch(q, k, v)
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and q.shape[2] == k.shape[2] == v.shape[2]
        and len(q) == len(k) == len(v)
        and k.shape[1] == v.shape[1]
        and q.shape[2] // num_heads % 2 == 0
        and all(x.stride(2) == 1 and x.stride(1) % 2 == 0 for x in (q, k, v))
    )


def example() -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, num, 48, generator=generator, dtype=torch.float32).bfloat16() for num in (51, 70, 70)
    )
    return q, k, v, 2


attention = Kernel(plain, fast, fits, example, Gradient, inputs=3, amx=True)
