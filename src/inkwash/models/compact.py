"""SRVGGNetCompact, Real-ESRGAN's small network. B batch, C channels, H W pixels, s scale."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d


@dataclass(frozen=True)
class CompactConfig:
    """Config of a compact upscaler. Defaults are realesr-animevideov3's; realesr-general-x4v3 has 32 convolutions."""

    channels: int = 64
    num_convs: int = 16  # between the first and the last one
    scale: int = 4
    in_channels: int = 3

    @property
    def multiple(self) -> int:
        """The number of pixels that sides must be multiples of."""
        return 1

    @property
    def reach(self) -> int:
        """The distance, in pixels of the input, at which a pixel can still change the output."""
        return self.num_convs + 2


class SRVGGNetCompact(nn.Module):
    """A chain of convolutions at the input's size, whose last channels become pixels (Wang et al. 2021, section 3.3)."""

    def __init__(self, config: CompactConfig = CompactConfig()):
        super().__init__()
        c = self.config = config
        widths = [c.in_channels, *[c.channels] * (c.num_convs + 1)]
        layers: list[nn.Module] = []
        for before in widths[:-1]:
            layers += [Conv2d(before, c.channels, 3, padding=1), nn.PReLU(c.channels)]
        self.body = nn.Sequential(*layers, Conv2d(c.channels, c.in_channels * c.scale**2, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Enlarge pixels (B, 3, H, W), about in [0, 1], to (B, 3, sH, sW): nearest pixels plus the network's residual."""
        s = self.config.scale
        return F.pixel_shuffle(self.body(pixels), s) + F.interpolate(pixels, scale_factor=s, mode="nearest")
