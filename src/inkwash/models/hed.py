"""HED, which finds edges at five scales at once. B batch, H W pixels.

Module names are those of ControlNet's `ControlNetHED.pth`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d


@dataclass(frozen=True)
class HEDConfig:
    """Config of HED. Defaults are VGG16's. fused: the scales are weighed by a convolution, as by Xie and Tu, or averaged."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    fused: bool = False


class HED(nn.Module):
    """Edges of pictures, each stage's at its own scale, together (Xie and Tu 2015, figure 3)."""

    def __init__(self, config: HEDConfig = HEDConfig()):
        super().__init__()
        self.config = config
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # what is taken from colours, from 0 to 255
        before = 3
        for i, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            self.add_module(f"block{i + 1}", Stage(before, width, depth))
            before = width
        if config.fused:
            self.fuse = Conv2d(len(config.widths), 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, H, W) from 0 to 1, an edge, of pixels (B, 3, H, W) in [0, 1]."""
        x, sides = pixels * 255 - self.norm, []
        for i in range(len(self.config.widths)):
            x = F.max_pool2d(x, 2, ceil_mode=True) if i else x
            x, side = self.get_submodule(f"block{i + 1}")(x)
            sides.append(F.interpolate(side, size=pixels.shape[2:], mode="bilinear", align_corners=False))
        together = torch.cat(sides, dim=1)
        return torch.sigmoid(self.fuse(together) if self.config.fused else together.mean(1, keepdim=True))


class Stage(nn.Module):
    """Convolutions of one size, and the edges that are seen after them."""

    def __init__(self, before: int, width: int, depth: int):
        super().__init__()
        convs = [Conv2d(before if k == 0 else width, width, 3, padding=1) for k in range(depth)]
        self.convs, self.projection = nn.ModuleList(convs), Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)
