"""Convolutional blocks of the U-Net under the names of the LDM/SGM checkpoints.

B batch, C channels, H W latent size, E width of the time embedding.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash import kernels
from inkwash.nn.layers import Conv2d, GroupNorm, Linear, hooked

M = TypeVar("M", bound=nn.Module)


def zero_init(module: M) -> M:
    """Zero weights for the last layer of a residual branch, so that training starts from the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def channels_last(module: M) -> M:
    """The module with its convolutions' weights in the memory order that is fastest."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


ACTS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU}


def normed(norm_groups: int, channels: int, eps: float, act: str) -> list[nn.Module]:
    """A norm and an activation, at two indices; SiLU the norm does itself, in one pass."""
    silu = act == "silu"
    return [GroupNorm(norm_groups, channels, eps, silu=silu), nn.Identity() if silu else ACTS[act]()]


class ResBlock(nn.Module):
    """norm-SiLU-conv twice, with the time embedding (B, E) added between, and a residual.

    resample: "down" halves the size by averaging before the first convolution, "up" doubles it, on both branches.
    scale_shift: the embedding scales and shifts what the second norm gives (Dhariwal and Nichol 2021, section 3).
    act: "silu" or "gelu", in SiLU's place throughout. scale: what comes out is divided by it.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        norm_groups: int = 32,
        eps: float = 1e-5,
        scale_shift: bool = False,
        resample: str | None = None,
        act: str = "silu",
        scale: float = 1.0,
    ):
        super().__init__()
        self.scale_shift, self.resample, self.scale = scale_shift, resample, scale
        self.act = ACTS[act]()
        # index 1 is the activation; SiLU the norm does. Index 2 of the last ones was a dropout in the checkpoints' networks
        self.in_layers = nn.Sequential(
            *normed(norm_groups, channels, eps, act),
            Conv2d(channels, out_channels, 3, padding=1),
        )
        embedded = out_channels * 2 if scale_shift else out_channels
        self.emb_layers = nn.Sequential(ACTS[act](), Linear(emb_channels, embedded))
        norm = [GroupNorm(norm_groups, out_channels, eps), nn.Identity()]
        self.out_layers = nn.Sequential(
            *(norm if scale_shift else normed(norm_groups, out_channels, eps, act)),
            nn.Identity(),
            zero_init(Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if self.resample is None:
            h = self.in_layers(x)
        else:
            h, x = (self.resized(part, size) for part in (self.in_layers[:2](x), x))
            h = self.in_layers[2](h)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[3](self.act(self.out_layers[0](h) * (1 + scale) + shift))
        else:
            h = self.out_layers(h + emb)
        made = self.skip_connection(x) + h
        return made if self.scale == 1 else made / self.scale

    def resized(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return F.avg_pool2d(x, 2) if self.resample == "down" else doubled(x, size)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided convolution.

    padding: 1 on all sides, or 0 for the right and bottom sides alone, as TensorFlow pads.
    """

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.op = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W), or to `size`: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return convolved(self.conv, x, size)


def doubled(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """x at twice its size, or at `size`, by which odd latents come back to the shape of their skip connection."""
    return F.interpolate(x, size=size) if size else F.interpolate(x, scale_factor=2.0)


def convolved(conv: Conv2d, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """A 3 x 3 convolution of the doubled x, both in one where `conv` is as it was made."""
    if hooked(conv) or size not in (None, (2 * x.shape[2], 2 * x.shape[3])):
        return conv(doubled(x, size))
    return kernels.upsample(x, conv.weight, conv.bias)
