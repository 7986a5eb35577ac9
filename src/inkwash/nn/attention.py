"""Attention and transformer blocks under the names of the LDM/SGM checkpoints.

B batch, T tokens (H*W of the image, or of the context), C channels, H W latent size.
"""

import torch
from torch import Tensor, nn

from inkwash import kernels
from inkwash.nn.blocks import zero_init
from inkwash.nn.layers import Conv2d, GroupNorm, Linear, hooked, plus


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, causal: bool = False) -> Tensor:
    """Softmax attention of (B, T, C) queries over (B, S, C) keys and values, split into `num_heads`."""
    return kernels.attention(q, k, v, num_heads, causal)


class Context:
    """The context that a network attends to besides its picture: tokens (B, S, D), and each layer's keys and values of them.

    Keys and values do not depend on the picture. A prompt that is given as the same object in every step has them
    computed in the first one alone.
    """

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.made: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.mapped: dict[nn.Module, Context] = {}

    def keys_values(self, layer: "CrossAttention | TextAttentionBlock") -> tuple[Tensor, Tensor]:
        # a compiled graph's results are in memory that its next run writes to
        if torch.compiler.is_compiling():
            return layer.project(self.tokens)
        if layer not in self.made:
            self.made[layer] = layer.project(self.tokens)
        return self.made[layer]

    def through(self, layer: nn.Module) -> "Context":
        """A layer's result for the tokens, kept as keys and values are."""
        if torch.compiler.is_compiling():
            return Context(layer(self.tokens))
        if layer not in self.mapped:
            self.mapped[layer] = Context(layer(self.tokens))
        return self.mapped[layer]


class CrossAttention(nn.Module):
    """Attention from (B, T, C) to a context of width context_dim, or to itself where none is given."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim or channels, channels, bias=False)
        self.to_v = Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.Sequential(Linear(channels, channels))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens (B, S, D)."""
        return self.to_k(tokens), self.to_v(tokens)

    def forward(self, x: Tensor, context: Context | None = None, residual: Tensor | None = None) -> Tensor:
        k, v = (Context(x) if context is None else context).keys_values(self)
        h = attend(self.to_q(x), k, v, self.num_heads)
        return plus(self.to_out[0], residual, h)


class GEGLU(nn.Module):
    """x * gelu(gate) of one projection to twice the width (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.geglu(self.proj(x)) if hooked(self.proj) else self.proj.geglu(x)


class FeedForward(nn.Module):
    """Two layers with GEGLU between them, over tokens (B, T, D)."""

    def __init__(self, channels: int):
        super().__init__()
        # index 1 was a dropout in the checkpoints' networks
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return plus(self.net[2], residual, self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each normed before, each residual.

    only_cross: the first attention is to the context too.
    """

    def __init__(self, channels: int, num_heads: int, context_dim: int, only_cross: bool = False):
        super().__init__()
        self.only_cross = only_cross
        self.attn1 = CrossAttention(channels, num_heads, context_dim if only_cross else None)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, num_heads, context_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = plus(self.attn1, x, self.norm1(x), context if self.only_cross else None)
        x = plus(self.attn2, x, self.norm2(x), context)
        return plus(self.ff, x, self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of (B, C, H, W), residual.

    `linear` chooses Linear projections (SD2, SDXL) instead of 1x1 convolutions (SD1); the maths is equal.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        depth: int,
        context_dim: int,
        linear: bool,
        norm_groups: int,
        only_cross: bool = False,
    ):
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, num_heads, context_dim, only_cross) for _ in range(depth)
        )
        self.proj_out = zero_init(Linear(channels, channels) if linear else Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        height, width = x.shape[2:]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # a view of channels_last memory, no copy
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = plus(self.proj_out, x.flatten(2).transpose(1, 2), h) if self.linear else h
        h = h.transpose(1, 2).unflatten(2, (height, width))
        return h if self.linear else self.proj_out(h) + x


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), residual: networks that see no context.

    Each head's query, key and value lie together in `qkv` (Ho et al. 2020; the names are Dhariwal and Nichol's).
    """

    def __init__(self, channels: int, num_heads: int, norm_groups: int, eps: float = 1e-5):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(norm_groups, channels, eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)
        # convolutions of width 1, as the linear layers that they are
        qkv = kernels.linear(h, self.qkv.weight[..., 0], self.qkv.bias).unflatten(2, (self.num_heads, 3, -1))
        h = attend(*(part.flatten(2) for part in qkv.unbind(3)), num_heads=self.num_heads)
        h = kernels.linear(h, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class TextAttentionBlock(nn.Module):
    """Attention from the pixels of (B, C, H, W) to text and pixels at once, residual (Saharia et al. 2022).

    The text's keys and values are put before those of the pixels, of which `only_cross` has none. Each head's parts lie
    together, as in `AttentionBlock`; the names are DeepFloyd IF's.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        norm_groups: int,
        eps: float,
        context_dim: int,
        only_cross: bool = False,
    ):
        super().__init__()
        self.num_heads, self.only_cross = num_heads, only_cross
        self.norm = GroupNorm(norm_groups, channels, eps)
        self.qkv = nn.Conv1d(channels, channels if only_cross else 3 * channels, 1)
        self.norm_encoder = nn.GroupNorm(32, context_dim)
        self.encoder_kv = nn.Conv1d(context_dim, 2 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def parts(self, layer: nn.Conv1d, x: Tensor) -> list[Tensor]:
        """The parts of a layer's projection of tokens (B, T, D), which lie side by side for each head: each (B, T, C)."""
        made = kernels.linear(x, layer.weight[..., 0], layer.bias)
        num = made.shape[2] // self.proj_out.in_channels
        return [part.flatten(2) for part in made.unflatten(2, (self.num_heads, num, -1)).unbind(3)]

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a text (B, S, D)."""
        k, v = self.parts(self.encoder_kv, self.norm_encoder(tokens.mT).mT)
        return k, v

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, *own = self.parts(self.qkv, self.norm(x).flatten(2).transpose(1, 2))
        k, v = context.keys_values(self)
        if own:
            k, v = (torch.cat([text, pixels], dim=1) for text, pixels in zip((k, v), own, strict=True))
        h = attend(q, k, v, self.num_heads)
        h = kernels.linear(h, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])
