"""RRDBNet, the network of ESRGAN, BSRGAN and Real-ESRGAN. B batch, C channels, H W pixels, s scale, u unshuffle.

Module names are those of Real-ESRGAN's checkpoints.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d

SLOPE = 0.2  # of LeakyReLU below 0
RESIDUAL = 0.2  # what of a block's output is added to its input


@dataclass(frozen=True)
class RRDBConfig:
    """Config of ESRGAN. Defaults are those of the x4 ones and RealESRGAN_x4plus; RealESRGAN_x2plus has unshuffle 2."""

    channels: int = 64
    growth: int = 32  # channels that each of a dense block's first four convolutions adds
    num_blocks: int = 23
    num_doublings: int = 2
    unshuffle: int = 1  # side of the squares of pixels that become channels first
    in_channels: int = 3
    out_channels: int = 3
    plus: bool = False  # ESRGAN+ (Rakotonirina and Rasoanaivo 2020): shortcuts within dense blocks
    step: int = 2  # by which each enlarging does: 3 in networks for three times the size

    @property
    def scale(self) -> int:
        """Factor by which each side of the output is larger."""
        return self.step**self.num_doublings // self.unshuffle

    @property
    def multiple(self) -> int:
        """The number of pixels that sides must be multiples of."""
        return self.unshuffle

    @property
    def reach(self) -> int:
        """The largest distance, in pixels of the input, at which a pixel can still change the output."""
        return (15 * self.num_blocks + 4) * self.unshuffle


class RRDBNet(nn.Module):
    """Residual blocks of residual dense blocks, then doublings (Wang et al. 2018, figure 4)."""

    def __init__(self, config: RRDBConfig = RRDBConfig()):
        super().__init__()
        c = self.config = config
        self.conv_first = Conv2d(c.in_channels * c.unshuffle**2, c.channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(c.channels, c.growth, c.plus) for _ in range(c.num_blocks)))
        self.conv_body = Conv2d(c.channels, c.channels, 3, padding=1)
        for k in range(c.num_doublings):
            self.add_module(f"conv_up{k + 1}", Conv2d(c.channels, c.channels, 3, padding=1))
        self.conv_hr = Conv2d(c.channels, c.channels, 3, padding=1)
        self.conv_last = Conv2d(c.channels, c.out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, sH, sW) of pixels (B, 3, H, W), both in [0, 1] about; H and W are multiples of u."""
        x = self.conv_first(F.pixel_unshuffle(pixels, self.config.unshuffle))
        x = x + self.conv_body(self.body(x))
        for k in range(self.config.num_doublings):
            x = F.interpolate(x, scale_factor=self.config.step, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{k + 1}")(x), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))


class ResidualBlock(nn.Module):
    """Three dense blocks, of whose output a fifth is added to the input."""

    def __init__(self, channels: int, growth: int, plus: bool = False):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth, plus) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and the outputs of all before it.

    plus: what the second gives has the input added, and what the fourth gives has that.
    """

    def __init__(self, channels: int, growth: int, plus: bool = False):
        super().__init__()
        self.conv1x1 = Conv2d(channels, growth, 1, bias=False) if plus else None
        widths = [channels + k * growth for k in range(5)]
        for k, width in enumerate(widths):
            self.add_module(f"conv{k + 1}", Conv2d(width, growth if k < 4 else channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for k in range(4):
            made = F.leaky_relu(self.get_submodule(f"conv{k + 1}")(torch.cat(seen, dim=1)), SLOPE)
            if self.conv1x1 is not None and k in (1, 3):
                made = made + (self.conv1x1(x) if k == 1 else seen[2])
            seen.append(made)
        return x + RESIDUAL * self.get_submodule("conv5")(torch.cat(seen, dim=1))
