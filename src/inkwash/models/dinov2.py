"""DINOv2's vision transformer under its own names. B batch, T tokens, D width, P patches a side."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.attention import attend
from inkwash.nn.layers import Conv2d, Linear

EPS = 1e-6
HEAD = 64  # width of an attention head, in every size


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention over patches (B, T, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.num_heads = max(1, width // HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.num_heads))


class MLP(nn.Module):
    """Two layers with GELU between them, over patches (B, T, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm, with a learned scale for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, EPS), Attention(width), Scale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width, EPS), MLP(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Pixels (B, 3, H, W) to vectors of their patches."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = Conv2d(3, width, patch, stride=patch)


class DINOv2(nn.Module):
    """A vision transformer of scaled residuals (Oquab et al. 2023): ViT-S, B or L, without registers.

    positions: patches a side that its position embeddings were trained with, 37 in the published files.
    """

    def __init__(self, width: int = 768, num_layers: int = 12, patch: int = 14, positions: int = 37):
        super().__init__()
        self.patch, self.positions = patch, positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(
            torch.zeros(1, width)
        )  # training's, which drawing no mask leaves unused
        self.pos_embed = nn.Parameter(torch.zeros(1, positions**2 + 1, width))
        self.patch_embed = PatchEmbedding(width, patch)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, EPS)

    def position_embeddings(self, height: int, width: int) -> Tensor:
        """Position embeddings (1, T, D) for so many patches, resized from those of training."""
        if height == width == self.positions:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.positions, self.positions)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid.float(), (height, width), mode="bicubic").to(grid.dtype)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """The first token's vectors (B, D) of pictures (B, 3, H, W), normalised by ImageNet's mean and std.

        Sides are multiples of the patch.
        """
        patches = self.patch_embed.proj(pixels)
        tokens = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = x + self.position_embeddings(*patches.shape[2:])
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])
