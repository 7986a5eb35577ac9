"""ControlNet union: one network for hints of several types. B batch, C channels, H W latent size, n hints, N types.

Module names are those of the published files, whose spelling is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.nn.blocks import zero_init
from inkwash.nn.embeddings import timestep_embedding
from inkwash.nn.layers import Linear
from inkwash.nn.residual_attention import ResidualAttentionBlock

# by their numbers; the last two are ProMax's
TYPES = ("pose", "depth", "soft", "line", "normal", "segmentation", "tile", "inpaint")
WAVES = 256  # channels by which each type's presence is embedded
NUM_HEADS = 8


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """Config of a ControlNet union. Defaults are those of the first union; ProMax has 8 types."""

    num_types: int = 6
    num_layers: int = 1  # of the transformer over hints


class ControlNetUnion(ControlNet):
    """A ControlNet for hints of several types, whose types are inputs, too (xinsir's ControlNet++)."""

    def __init__(self, config: ControlNetUnionConfig = ControlNetUnionConfig()):
        super().__init__(config)
        self.num_types, dim = config.num_types, config.unet.channels
        self.task_embedding = nn.Parameter(dim**0.5 * torch.randn(config.num_types, dim))
        self.transformer_layes = nn.ModuleList(
            ResidualAttentionBlock(dim, NUM_HEADS) for _ in range(config.num_layers)
        )
        self.spatial_ch_projs = zero_init(Linear(dim, dim))
        self.control_add_embedding = TypeEmbedding(WAVES * config.num_types, 4 * dim)

    def see(self, hint: Tensor, types: Sequence[int] = (), weights: Sequence[float] = ()) -> Tensor:
        """Features (B, C, H, W) of hints (B, n hint_channels, 8H, 8W) in [0, 1] of n types; they don't depend on the step.

        weights: of each hint where there are several.
        """
        pairs = zip(hint.chunk(len(types), dim=1), types, weights, strict=True)
        return torch.stack([self.see_one(*each) for each in pairs]).sum(dim=0)

    def see_one(self, hint: Tensor, type: int, weight: float) -> Tensor:
        """A hint's features, shifted by what the transformer makes of their mean.

        The published code runs attention along the batch's axis, where each row is of the same hint, so that a hint
        attends to itself alone.
        """
        features = self.input_hint_block(hint)
        x = weight * (features.mean(dim=(2, 3))[:, None] + self.task_embedding[type])
        for layer in self.transformer_layes:
            x = layer(x)
        return weight * (features + self.spatial_ch_projs(x[:, 0])[:, :, None, None])

    def embed_types(self, types: Sequence[int], like: Tensor) -> Tensor:
        """The argument `added` of `forward`, for the given types: (1, 4 C). like: of the dtype and device."""
        there = torch.zeros(self.num_types)
        there[list(types)] = 1
        return self.control_add_embedding(timestep_embedding(there, WAVES).flatten()[None].to(like))


class TypeEmbedding(nn.Module):
    """Two layers with SiLU between them."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.linear_1, self.linear_2 = Linear(dim_in, dim), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
