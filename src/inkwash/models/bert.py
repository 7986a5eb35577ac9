"""The text encoder that latent diffusion trained along with its U-Net. B batch, T tokens, D width.

Module names are those of the original checkpoints, which come from x-transformers.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from inkwash.nn.attention import attend
from inkwash.nn.layers import Linear


@dataclass(frozen=True)
class BERTConfig:
    """Config of BERT. Defaults are the text encoder of the LDM of 1.45 billion parameters."""

    vocab_size: int = 30522
    width: int = 1280
    num_layers: int = 32
    max_length: int = 77
    num_heads: int = 8
    head_dim: int = 64


class BERTAttention(nn.Module):
    """Self-attention over tokens (B, T, D), without a bias in its projections."""

    def __init__(self, c: BERTConfig):
        super().__init__()
        self.num_heads, inner = c.num_heads, c.num_heads * c.head_dim
        self.to_q, self.to_k, self.to_v = (Linear(c.width, inner, bias=False) for _ in range(3))
        self.to_out = Linear(inner, c.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.num_heads))


class BERTFeedForward(nn.Module):
    """Two layers with GELU between them, over tokens (B, T, D)."""

    def __init__(self, width: int):
        super().__init__()
        # index 1 was a dropout in the checkpoints' networks
        up = nn.Sequential(Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(up, nn.Identity(), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BERTLayers(nn.Module):
    """Attention and feed-forward by turns, each a pair of a norm before it and itself, each residual."""

    def __init__(self, c: BERTConfig):
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(2 * c.num_layers):
            layer = BERTFeedForward(c.width) if i % 2 else BERTAttention(c)
            self.layers.append(nn.ModuleList([nn.LayerNorm(c.width), layer]))

    def forward(self, x: Tensor, num_layers: int) -> Tensor:
        for norm, layer in self.layers[: 2 * num_layers]:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + layer(norm(x))
        return x


class PositionEmbedding(nn.Module):
    """A learned vector for each place in the text."""

    def __init__(self, c: BERTConfig):
        super().__init__()
        self.emb = nn.Embedding(c.max_length, c.width)


class BERTTransformer(nn.Module):
    """Token and position embeddings, and the layers over them."""

    def __init__(self, c: BERTConfig):
        super().__init__()
        self.token_emb = nn.Embedding(c.vocab_size, c.width)
        self.pos_emb = PositionEmbedding(c)
        self.attn_layers = BERTLayers(c)
        self.norm = nn.LayerNorm(c.width)


class BERT(nn.Module):
    """Tokens, of a text or of a layout's boxes, to context vectors (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(self, config: BERTConfig = BERTConfig()):
        super().__init__()
        self.config = config
        self.transformer = BERTTransformer(config)

    def forward(self, tokens: Tensor, skip: int = 1, final_norm: bool = True) -> tuple[Tensor, Tensor]:
        """Context (B, T, D) and the first token's vector (B, D) of token ids (B, T), T <= max_length.

        Padding is seen like any token. skip, final_norm: as of `CLIPText`. Raises ValueError for a skip or T out of
        range.
        """
        c, model = self.config, self.transformer
        if not 1 <= skip <= c.num_layers:
            raise ValueError(f"clip skip {skip} is not in 1 to {c.num_layers}, the number of layers")
        if tokens.shape[1] > c.max_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are more than the {c.max_length} that the encoder takes"
            )
        x = model.token_emb(tokens) + model.pos_emb.emb.weight[: tokens.shape[1]]
        x = model.attn_layers(x, c.num_layers + 1 - skip)
        context = model.norm(x) if final_norm else x
        return context, context[:, 0]
