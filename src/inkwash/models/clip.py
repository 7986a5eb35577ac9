"""CLIP's text and vision towers under the Hugging Face names. B batch, T tokens, D width, P patches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inkwash.kernels.linear import ACTIVATIONS
from inkwash.nn.attention import attend
from inkwash.nn.layers import Conv2d, Linear, plus

# of the pictures that the vision towers were trained on, RGB in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPTextConfig:
    """Config of a CLIP text tower. Defaults are ViT-L/14's, the text encoder of SD 1.x."""

    vocab_size: int = 49408
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_length: int = 77
    activation: str = "quick_gelu"  # "gelu" in OpenCLIP
    projection_dim: int | None = None  # given: the pooled vector is projected (SDXL's second encoder)
    eos_token: int = 49407

    def __post_init__(self) -> None:
        check_activation(self.activation)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Config of a CLIP vision tower. Defaults are ViT-L/14's."""

    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096
    image_size: int = 224
    patch_size: int = 14
    activation: str = "quick_gelu"
    projection_dim: int | None = 768

    def __post_init__(self) -> None:
        check_activation(self.activation)


def check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")


class CLIPAttention(nn.Module):
    """Self-attention over tokens (B, T, D), causal for text."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool, residual: Tensor | None = None) -> Tensor:
        h = attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.num_heads, causal)
        return plus(self.out_proj, residual, h)


class CLIPMLP(nn.Module):
    """Two layers with the config's activation between them, over tokens (B, T, D)."""

    def __init__(self, width: int, mlp_width: int, activation: str):
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(width, mlp_width)
        self.fc2 = Linear(mlp_width, width)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return plus(self.fc2, residual, self.fc1.activated(x, self.activation))


class CLIPLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, c: CLIPTextConfig | CLIPVisionConfig):
        super().__init__()
        self.self_attn = CLIPAttention(c.width, c.num_heads)
        self.layer_norm1 = nn.LayerNorm(c.width)
        self.mlp = CLIPMLP(c.width, c.mlp_width, c.activation)
        self.layer_norm2 = nn.LayerNorm(c.width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = plus(self.self_attn, x, self.layer_norm1(x), causal)
        return plus(self.mlp, x, self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The stack of layers over tokens (B, T, D)."""

    def __init__(self, c: CLIPTextConfig | CLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(c) for _ in range(c.num_layers))

    def forward(self, x: Tensor, causal: bool, skip: int = 1) -> tuple[Tensor, Tensor]:
        """The last layer's output, and that of the layer `skip` from the end (1 is the last)."""
        wanted = x
        for i, layer in enumerate(self.layers):
            x = layer(x, causal)
            if i == len(self.layers) - skip:
                wanted = x
        return x, wanted


class TextEmbeddings(nn.Module):
    """Tokens (B, T) to vectors (B, T, D), with those of their positions added."""

    def __init__(self, c: CLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.position_embedding = nn.Embedding(c.max_length, c.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class TextTransformer(nn.Module):
    """Embeddings, layers and the last norm of CLIP's text encoder."""

    def __init__(self, c: CLIPTextConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(c)
        self.encoder = CLIPEncoder(c)
        self.final_layer_norm = nn.LayerNorm(c.width)


class CLIPText(nn.Module):
    """Text to context vectors (Radford et al. 2021)."""

    def __init__(self, config: CLIPTextConfig = CLIPTextConfig()):
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        if config.projection_dim is not None:
            self.text_projection = Linear(config.width, config.projection_dim, bias=False)

    def forward(self, tokens: Tensor, skip: int = 1, final_norm: bool = True) -> tuple[Tensor, Tensor]:
        """Context (B, T, D) and pooled vector (B, D or projection_dim) of token ids (B, T), T <= max_length.

        skip: the layer from the end whose output is the context (A1111's clip skip; 1 is the last).
        final_norm: whether that output is normed (SD1, SD2: yes; SDXL: no). The pooled vector is always the
        last layer's, normed, at the first end-of-text token. Raises ValueError for a skip or T out of range.
        """
        c, model = self.config, self.text_model
        if not 1 <= skip <= c.num_layers:
            raise ValueError(f"clip skip {skip} is not in 1 to {c.num_layers}, the number of layers")
        if tokens.shape[1] > c.max_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are more than the {c.max_length} that the encoder takes"
            )
        last, context = model.encoder(model.embeddings(tokens), causal=True, skip=skip)
        context = model.final_layer_norm(context) if final_norm else context
        end = (tokens == c.eos_token).int().argmax(dim=1)
        pooled = model.final_layer_norm(last[torch.arange(len(end), device=end.device), end])
        return context, self.text_projection(pooled) if c.projection_dim is not None else pooled


class VisionEmbeddings(nn.Module):
    """Pixels (B, 3, H, W) to vectors of their patches behind a class vector, (B, 1 + T, D)."""

    def __init__(self, c: CLIPVisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(0.02 * torch.randn(c.width))
        self.patch_embedding = Conv2d(3, c.width, c.patch_size, stride=c.patch_size, bias=False)
        self.position_embedding = nn.Embedding((c.image_size // c.patch_size) ** 2 + 1, c.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1).to(patches.dtype)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, layers and norms of CLIP's picture encoder."""

    def __init__(self, c: CLIPVisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.width)  # the checkpoints' own spelling
        self.encoder = CLIPEncoder(c)
        self.post_layernorm = nn.LayerNorm(c.width)


class CLIPVision(nn.Module):
    """Pictures to patch and picture vectors (Radford et al. 2021)."""

    def __init__(self, config: CLIPVisionConfig = CLIPVisionConfig()):
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        if config.projection_dim is not None:
            self.visual_projection = Linear(config.width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor, skip: int = 1) -> tuple[Tensor, Tensor]:
        """Hidden states (B, P+1, D) and picture vector (B, D or projection_dim) of pixels (B, 3, S, S).

        Pixels are normalised as the weights expect (CLIP's own mean and std). S is config.image_size, else
        ValueError. skip: the layer from the end whose output is the hidden states.
        """
        size = self.config.image_size
        if tuple(pixels.shape[2:]) != (size, size):
            raise ValueError(f"pictures of {pixels.shape[3]}x{pixels.shape[2]} given, {size}x{size} wanted")
        model = self.vision_model
        last, hidden = model.encoder(model.pre_layrnorm(model.embeddings(pixels)), causal=False, skip=skip)
        pooled = model.post_layernorm(last[:, 0])
        return hidden, self.visual_projection(pooled) if self.config.projection_dim is not None else pooled
