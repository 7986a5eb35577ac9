"""Guidance away from the prediction with disturbed self-attention. B batch, T tokens, C channels.

The network is touched through forward hooks alone, which are gone after each call.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.diffusion.guidance.compose import Guided, Prediction, changed
from inkwash.nn.attention import CrossAttention


def perturbed_attention_guidance(D: Guided, attentions: Sequence[CrossAttention], scale: float) -> Guided:
    """Guidance away from a network whose self-attentions look at nothing but their own place (PAG).

    guided + scale * (cond - cond with them), one more call; it needs no prompt. attentions: self-attentions of D's
    network, those of its middle block by default in other programs. Source: Ahn et al. 2024, equation 13.
    """

    def change(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        with looking_at_itself(attentions):
            return made.guided + scale * (made.cond - D.predict(x, sigma, "cond").cond)

    return changed(D, change)


@contextmanager
def looking_at_itself(attentions: Sequence[CrossAttention]) -> Iterator[None]:
    """Replace the attention maps of these layers by the identity within the context."""

    def values(attention: CrossAttention, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return attention.to_out(attention.to_v(args[0]))

    with ExitStack() as stack:
        for attention in attentions:
            stack.callback(attention.register_forward_hook(values).remove)
        yield


def self_attention_guidance(
    D: Guided, weak: Literal["cond", "uncond"], attention: CrossAttention, scale: float, blur: float = 1.0
) -> Guided:
    """Guidance away from a picture that is blurred where the network looks (SAG); two more calls.

    weak: D's prediction for both pictures, uncond, or cond where there is no other guidance. attention: a
    self-attention of its network, the first of the middle block in the paper. blur: std in latent pixels, over 9.
    Source: Hong et al. 2023, algorithm 1. There eps is guided by eps(x) - eps(x'), x' being the degraded x0' with the
    same noise; of x0 that is x0' - D(x').
    """

    def change(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        with attention_received(attention) as received:
            x0 = D.predict(x, sigma, weak).guided
        if len(received) != 1 or len(received[0]) != len(x):
            raise ValueError("sag_scale needs a network that sees the whole picture in one call")
        seen = (received[0] > 1).to(x.dtype).view(len(x), 1, *map_size(received[0].shape[1], x.shape[2:]))
        mask = F.interpolate(seen, size=x.shape[2:])
        degraded = torch.lerp(x0, blurred(x0, blur), mask)
        return made.guided + scale * (degraded - D.predict(degraded + (x - x0), sigma, weak).guided)

    return changed(D, change)


@contextmanager
def attention_received(attention: CrossAttention) -> Iterator[list[Tensor]]:
    """Record how much attention each token gets from all others, (B, T), 1 on average, for each call within the context."""
    maps: list[Tensor] = []

    def look(attention: CrossAttention, args: tuple[Tensor, ...], out: Tensor) -> None:
        q, k = (
            to(args[0]).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float()
            for to in (attention.to_q, attention.to_k)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)
        maps.append(weights.mean(dim=1).sum(dim=1))

    handle = attention.register_forward_hook(look)
    try:
        yield maps
    finally:
        handle.remove()


def map_size(num_tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a map of so many tokens: those of the latent, halved as often as it takes."""
    height, width = size
    while height * width > num_tokens:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def blurred(x: Tensor, std: float, size: int = 9) -> Tensor:
    """x (B, C, H, W) under a Gaussian of size x size, mirrored at its edges."""
    at = torch.arange(size, device=x.device, dtype=x.dtype) - size // 2
    line = torch.softmax(-0.5 * (at / std).square(), dim=0)
    for axis in (2, 3):
        reach = min(size // 2, x.shape[axis] - 1)  # as far as a mirror can show
        kernel = line[size // 2 - reach : size // 2 + reach + 1]
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        kernel = (kernel / kernel.sum()).view(shape).repeat(x.shape[1], 1, 1, 1)
        x = F.conv2d(F.pad(x, padding, mode="reflect"), kernel, groups=x.shape[1])
    return x
