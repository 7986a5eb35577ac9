"""The diffusion prior: from text to the vector of a picture, by diffusers' names. B batch, T tokens, E vector width."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.embeddings import timestep_embedding
from inkwash.nn.layers import Linear


@dataclass(frozen=True)
class PriorConfig:
    """Config of a prior. Defaults are Karlo's and Kandinsky 2's."""

    vector_dim: int = 768  # of the picture's vector, the pooled text's and the tokens'
    num_heads: int = 32
    head_dim: int = 64
    num_layers: int = 20
    num_tokens: int = 77

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


class PriorAttention(nn.Module):
    """Self-attention of a prior's tokens (B, N, D), where a mask lets them see each other."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(Linear(width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class PriorBlock(nn.Module):
    """Self-attention and a feed-forward layer, each normed before, each residual."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = PriorAttention(width, num_heads)
        # index 1 was a dropout in the checkpoints' networks
        gelu = nn.Sequential()
        gelu.add_module("proj", Linear(width, 4 * width))
        gelu.add_module("act", nn.GELU())
        self.ff = nn.ModuleDict({"net": nn.Sequential(gelu, nn.Identity(), Linear(4 * width, width))})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), mask)
        return x + self.ff["net"](self.norm3(x))


class TimeEmbedding(nn.Module):
    """Two linear layers over the sines and cosines of a timestep."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = Linear(width, width), Linear(width, width)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class Prior(nn.Module):
    """Predicts a picture's vector from a noised one and from text, causally (Ramesh et al. 2022, section 2.2).

    The sequence is the text's tokens, its pooled vector, the time, the noised vector, and an embedding whose output is
    the prediction. Vectors are those of `mean` 0 and `std` 1, as `scaled` gives them.
    """

    def __init__(self, config: PriorConfig = PriorConfig()):
        super().__init__()
        self.config = c = config
        self.time_embedding = TimeEmbedding(c.width)
        self.proj_in, self.embedding_proj, self.encoder_hidden_states_proj = (
            Linear(c.vector_dim, c.width) for _ in range(3)
        )
        self.positional_embedding = nn.Parameter(torch.zeros(1, c.num_tokens + 4, c.width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, c.width))
        self.transformer_blocks = nn.ModuleList(PriorBlock(c.width, c.num_heads) for _ in range(c.num_layers))
        self.norm_out = nn.LayerNorm(c.width)
        self.proj_to_clip_embeddings = Linear(c.width, c.vector_dim)
        self.clip_mean, self.clip_std = (nn.Parameter(torch.zeros(1, c.vector_dim)) for _ in range(2))

    def forward(
        self, x: Tensor, t: Tensor, pooled: Tensor, tokens: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The expected scaled vector (B, E).

        x: (B, E), a noised one of unit variance. t: (B,) timesteps in [0, 999]. pooled: (B, E). tokens: (B, T, E), T at most
        the config's, else ValueError: those that no text of the batch has may be left out. mask: (B, T) bool, false for
        what lies behind the text.
        """
        c, num = self.config, tokens.shape[1]
        if num > c.num_tokens or tokens.shape[2] != c.vector_dim:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} should be (B, {c.num_tokens}, {c.vector_dim}) or fewer"
            )
        time = self.time_embedding(timestep_embedding(t, c.width).to(x.dtype))
        parts = [self.encoder_hidden_states_proj(tokens), self.embedding_proj(pooled)[:, None], time[:, None]]
        h = torch.cat([*parts, self.proj_in(x)[:, None], self.prd_embedding.expand(len(x), -1, -1)], dim=1)
        places = self.positional_embedding
        h = h + torch.cat([places[:, :num], places[:, c.num_tokens :]], dim=1)
        seen = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()[None, None]
        if mask is not None:
            seen = seen & F.pad(mask.bool(), (0, 4), value=True)[:, None, None]
        for block in self.transformer_blocks:
            h = block(h, seen)
        return self.proj_to_clip_embeddings(self.norm_out(h)[:, -1])

    def scaled(self, vectors: Tensor) -> Tensor:
        """CLIP's vectors (B, E) as the network sees them."""
        return (vectors - self.clip_mean) / self.clip_std

    def unscaled(self, x: Tensor) -> Tensor:
        """CLIP's vectors from the network's normalised ones."""
        return x * self.clip_std + self.clip_mean
