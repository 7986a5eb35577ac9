"""T5's encoder under the names of transformers: T5 1.1 and Flan-T5, and the first T5. B batch, T tokens, D width.

Sources: Raffel et al. 2020, section 2.1; for the gated feed-forward of 1.1, Shazeer 2020.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Linear


@dataclass(frozen=True)
class T5Config:
    """Config of T5. Defaults are T5 1.1 XXL's encoder, the text encoder of Imagen and DeepFloyd IF."""

    vocab_size: int = 32128
    width: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_width: int = 10240
    gated: bool = True  # GELU times a second projection; False: ReLU, as in the first T5
    num_buckets: int = 32  # of relative positions ...
    max_distance: int = 128  # ... the last of which has all from here on
    eps: float = 1e-6
    max_length: int = 77  # no limit of the network's: what Imagen's U-Nets are given
    pad: int = 0  # no token sees it


class RMSNorm(nn.Module):
    """x over the root of its mean square, in float32, times a weight (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) float32 to the weight's dtype."""
        return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)).to(
            self.weight.dtype
        ) * self.weight


class T5Attention(nn.Module):
    """Self-attention with a bias by relative position, and without the usual scale, which is in the weights."""

    def __init__(self, c: T5Config, biased: bool):
        super().__init__()
        self.num_heads, inner = c.num_heads, c.num_heads * c.head_dim
        self.q, self.k, self.v = (Linear(c.width, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, c.width, bias=False)
        if biased:
            self.relative_attention_bias = nn.Embedding(c.num_buckets, c.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        # scores that are not scaled down leave float16's range
        h = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias, scale=1.0)
        return self.o(h.transpose(1, 2).flatten(2).to(x.dtype))


class T5FeedForward(nn.Module):
    """Two layers with a gated GELU, or a ReLU, between them, over tokens (B, T, D)."""

    def __init__(self, c: T5Config):
        super().__init__()
        self.gated = c.gated
        if c.gated:
            self.wi_0, self.wi_1 = (Linear(c.width, c.mlp_width, bias=False) for _ in range(2))
        else:
            self.wi = Linear(c.width, c.mlp_width, bias=False)
        self.wo = Linear(c.mlp_width, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The feed-forward layer; its last projection is float32, since its outputs exceed float16's range."""
        h = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else self.wi(x).relu()
        return F.linear(h.float(), self.wo.weight.float())


class SelfAttentionLayer(nn.Module):
    """Self-attention and the norm before it, under T5's names."""

    def __init__(self, c: T5Config, biased: bool):
        super().__init__()
        self.SelfAttention = T5Attention(c, biased)
        self.layer_norm = RMSNorm(c.width, c.eps)


class FeedForwardLayer(nn.Module):
    """A feed-forward network and the norm before it, under T5's names."""

    def __init__(self, c: T5Config):
        super().__init__()
        self.DenseReluDense = T5FeedForward(c)
        self.layer_norm = RMSNorm(c.width, c.eps)


class T5Block(nn.Module):
    """Self-attention and a feed-forward network, each beside a shortcut."""

    def __init__(self, c: T5Config, biased: bool):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(c, biased), FeedForwardLayer(c)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, mlp = self.layer
        x = x + attention.SelfAttention(attention.layer_norm(x), bias).float()  # pyright: ignore[reportCallIssue]
        return x + mlp.DenseReluDense(mlp.layer_norm(x))  # pyright: ignore[reportCallIssue]


class T5Stack(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, c: T5Config):
        super().__init__()
        self.block = nn.ModuleList(T5Block(c, biased=i == 0) for i in range(c.num_layers))
        self.final_layer_norm = RMSNorm(c.width, c.eps)


class T5(nn.Module):
    """Tokens to context vectors. The residual stream is float32, whatever the weights are."""

    def __init__(self, config: T5Config = T5Config()):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.width)
        self.encoder = T5Stack(config)

    def forward(self, tokens: Tensor, skip: int = 1, final_norm: bool = True) -> tuple[Tensor, Tensor]:
        """Context (B, T, D) and its mean over tokens (B, D) of token ids (B, T).

        skip, final_norm: as of `CLIPText`. Raises ValueError for a skip out of range.
        """
        c, model = self.config, self.encoder
        if not 1 <= skip <= c.num_layers:
            raise ValueError(f"clip skip {skip} is not in 1 to {c.num_layers}, the number of layers")
        blocks = list(model.block)[: c.num_layers + 1 - skip]
        table = blocks[0].layer[0].SelfAttention.relative_attention_bias.weight  # pyright: ignore
        seen = (tokens != c.pad)[:, None, None]
        positions = table[buckets(tokens.shape[1], c.num_buckets, c.max_distance).to(tokens.device)]
        bias = positions.permute(2, 0, 1).float().masked_fill(~seen, torch.finfo(torch.float32).min)
        x = self.shared(tokens).float()
        for block in blocks:
            x = block(x, bias)
        context = model.final_layer_norm(x) if final_norm else x.to(table.dtype)
        weights = seen[:, 0, 0, :, None].to(context.dtype)
        return context, (context * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def buckets(length: int, num: int, max_distance: int) -> Tensor:
    """The bucket (T, T) of each key's position relative to each query's.

    Half are for keys behind the query. Of each half, half are for one distance each, the others for ever wider spans,
    even in the logarithm, up to max_distance.
    """
    positions = torch.arange(length)
    distance = positions[None] - positions[:, None]
    half, exact = num // 2, num // 4
    far = distance.abs().clamp(min=1).float()
    spans = exact + (torch.log(far / exact) / math.log(max_distance / exact) * (half - exact)).long()
    near = torch.where(distance.abs() < exact, distance.abs(), spans.clamp(max=half - 1))
    return near + half * (distance > 0)
