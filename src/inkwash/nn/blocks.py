"""Convolutional blocks of the U-Net under the names of the LDM/SGM checkpoints.

B batch, C channels, H W latent size, E width of the time embedding.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d, GroupNorm, Linear

M = TypeVar("M", bound=nn.Module)


def zero_init(module: M) -> M:
    """Zero weights for the last layer of a residual branch, so that training starts from the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def channels_last(module: M) -> M:
    """The module with its convolutions' weights in the memory order that is fastest."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class ResBlock(nn.Module):
    """norm-SiLU-conv twice, with the time embedding (B, E) added between, and a residual."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, norm_groups: int = 32):
        super().__init__()
        # index 1 is the SiLU, which the norm does; index 2 of the last ones was a dropout in the checkpoints' networks
        self.in_layers = nn.Sequential(
            GroupNorm(norm_groups, channels, silu=True),
            nn.Identity(),
            Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(norm_groups, out_channels, silu=True),
            nn.Identity(),
            nn.Identity(),
            zero_init(Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W), or to `size`: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        # `size` lets odd latents come back to the shape of their skip connection
        h = F.interpolate(x, size=size) if size else F.interpolate(x, scale_factor=2.0)
        return self.conv(h)
