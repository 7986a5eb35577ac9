"""T2I-Adapter's style adapter: what CLIP sees in a picture to tokens of the prompt's context. B batch, T tokens, D width.

Module names are those of the published file, whose spelling is kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inkwash.nn.residual_attention import ResidualAttentionBlock

NUM_HEADS = 8


@dataclass(frozen=True)
class StyleAdapterConfig:
    """Config of a style adapter. Defaults are the published one's."""

    width: int = 1024  # of the vision tower
    context_dim: int = 768
    num_tokens: int = 8
    num_layers: int = 3


class StyleAdapter(nn.Module):
    """Tokens that ask a picture's patches (Mou et al. 2023)."""

    def __init__(self, config: StyleAdapterConfig = StyleAdapterConfig()):
        super().__init__()
        c = self.config = config
        self.style_embedding = nn.Parameter(c.width**-0.5 * torch.randn(1, c.num_tokens, c.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        layers = (ResidualAttentionBlock(c.width, NUM_HEADS) for _ in range(c.num_layers))
        self.transformer_layes = nn.Sequential(*layers)
        self.proj = nn.Parameter(c.width**-0.5 * torch.randn(c.width, c.context_dim))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, num_tokens, context_dim) of a vision tower's last hidden states (B, P+1, width), not normed."""
        tokens = self.style_embedding.expand(len(patches), -1, -1)
        x = self.transformer_layes(self.ln_pre(torch.cat([patches, tokens], dim=1)))
        return self.ln_post(x[:, -tokens.shape[1] :]) @ self.proj
