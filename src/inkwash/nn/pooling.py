"""Vectors of a text as one. B batch, T tokens, D width."""

import torch
from torch import Tensor, nn

from inkwash.nn.attention import attend
from inkwash.nn.layers import Linear


class AttentionPooling(nn.Module):
    """Pooling by attention of the tokens' mean to them and itself (as CLIP's ResNets: Radford et al. 2021, 2.4)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) of (B, T, D)."""
        mean = x.mean(dim=1, keepdim=True) + self.positional_embedding
        x = torch.cat([mean, x], dim=1)
        return attend(self.q_proj(mean), self.k_proj(x), self.v_proj(x), self.num_heads)[:, 0]
