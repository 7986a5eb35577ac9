"""T2I-Adapters: a hint to features of each of the U-Net's levels. B batch, C channels, H W latent size.

Module names are those of the original files, without `adapter.` in front.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Config of a T2I-Adapter. Defaults are Stable Diffusion 1.x's full adapter."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level's features
    num_res_blocks: int = 2  # a level
    hint_channels: int = 3
    factor: int = 8  # by which the hint is unshuffled: 16 in SDXL
    light: bool = False

    @property
    def halves(self) -> tuple[bool, ...]:
        """For each level, True if it begins by halving the size."""
        levels = range(len(self.channels))
        return tuple(i == 2 if self.factor == 16 else i > 0 for i in levels)


class Block(nn.Module):
    """conv-ReLU-conv with a residual, after a 1 x 1 convolution where the width changes."""

    def __init__(self, dim_in: int, dim: int, second: int):
        super().__init__()
        if dim_in != dim:
            self.in_conv = Conv2d(dim_in, dim, 1)
        self.block1 = Conv2d(dim, dim, 3, padding=1)
        self.block2 = Conv2d(dim, dim, second, padding=second // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(x) if hasattr(self, "in_conv") else x
        return x + self.block2(F.relu(self.block1(x)))


class LightBlock(nn.Module):
    """Blocks at a quarter of the width."""

    def __init__(self, dim_in: int, dim: int, num_res_blocks: int):
        super().__init__()
        self.in_conv = Conv2d(dim_in, dim // 4, 1)
        self.body = nn.Sequential(*(Block(dim // 4, dim // 4, 3) for _ in range(num_res_blocks)))
        self.out_conv = Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(x)))


class T2IAdapter(nn.Module):
    """Features that are added to the U-Net's levels (Mou et al. 2023, section 3.3)."""

    def __init__(self, config: T2IAdapterConfig = T2IAdapterConfig()):
        super().__init__()
        self.config, self.hint_channels = config, config.hint_channels
        c = config
        dim = c.hint_channels * c.factor**2
        if not c.light:
            self.conv_in = Conv2d(dim, c.channels[0], 3, padding=1)
            dim = c.channels[0]
        self.body = nn.ModuleList(blocks(c, dim))

    def forward(self, hint: Tensor) -> list[Tensor]:
        """A feature (B, C, h, w) of each level, of a hint (B, hint_channels, 8H, 8W) in [0, 1]."""
        c, features = self.config, []
        x = F.pixel_unshuffle(hint, c.factor)
        x = x if c.light else self.conv_in(x)
        per_level = 1 if c.light else c.num_res_blocks
        for i, block in enumerate(self.body):
            if i % per_level == 0 and c.halves[i // per_level]:
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            x = block(x)
            if i % per_level == per_level - 1:
                features.append(x)
        return features


def blocks(c: T2IAdapterConfig, dim: int) -> Iterator[nn.Module]:
    """The features of each level in turn."""
    for wanted in c.channels:
        if c.light:
            yield LightBlock(dim, wanted, c.num_res_blocks)
        else:
            yield from (Block(wanted if i else dim, wanted, 1) for i in range(c.num_res_blocks))
        dim = wanted
