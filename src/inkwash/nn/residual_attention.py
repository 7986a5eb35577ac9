"""The transformer block of OpenAI's CLIP, under its own names. B batch, T tokens, C channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.attention import attend
from inkwash.nn.layers import Linear


class ResidualAttentionBlock(nn.Module):
    """Self-attention and two layers over (B, T, C), each normed before, each residual."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.attn = StackedAttention(channels, num_heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = QuickMLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class StackedAttention(nn.Module):
    """Self-attention whose queries, keys and values are one projection, as in torch's MultiheadAttention."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(channels**-0.5 * torch.randn(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q.contiguous(), k.contiguous(), v.contiguous(), self.num_heads))


class QuickMLP(nn.Module):
    """Two layers with the sigmoid's approximation of GELU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.c_fc, self.c_proj = Linear(channels, 4 * channels), Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))
