"""A picture's colours without its detail, or its light without colours. B batch, H W pixels; values in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.212671, 0.715160, 0.072169)  # of linear RGB of sRGB's primaries, to CIE's Y


def blur(pixels: Tensor, sigma: float = 9) -> Tensor:
    """A picture (B, C, H, W) under a Gaussian of sigma pixels, cut at 4 sigma; the edge's pixels go on outside."""
    if not 0 < sigma <= 1000:
        raise ValueError(f"sigma {sigma:g}: above 0 to 1000 is needed")
    radius = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2)
    weights = (weights / weights.sum()).to(pixels.dtype)
    made = F.pad(pixels.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")
    made = F.conv2d(F.conv2d(made, weights[None, None, None]), weights[None, None, :, None])
    return made.view_as(pixels)


def tile(pixels: Tensor, factor: float = 4) -> Tensor:
    """A picture (B, 3, H, W) made smaller by a factor and large again: what a tile ControlNet draws the detail of."""
    height, width = pixels.shape[2:]
    small = F.interpolate(pixels, shrunk(pixels, factor), mode="area")
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def palette(pixels: Tensor, factor: float = 64) -> Tensor:
    """Squares of factor pixels in their mean colours, as T2I-Adapter's colour hints; (B, 3, H, W)."""
    small = F.interpolate(pixels, shrunk(pixels, factor), mode="area")
    return F.interpolate(small, pixels.shape[2:], mode="nearest-exact")


def shrunk(pixels: Tensor, factor: float) -> tuple[int, int]:
    """(H, W) divided by a factor, at least 1. Raises ValueError for a factor below 1."""
    if not 1 <= factor <= 2**16:
        raise ValueError(f"factor {factor:g}: 1 to 65536 is needed")
    height, width = pixels.shape[2:]
    return max(1, round(height / factor)), max(1, round(width / factor))


def recolor(pixels: Tensor, gamma: float = 1) -> Tensor:
    """Lightness, CIELAB's L / 100 of an sRGB picture to the power of gamma; (B, 1, H, W)."""
    if not 0 < gamma <= 100:
        raise ValueError(f"gamma {gamma:g}: above 0 to 100 is needed")
    linear = torch.where(pixels > 0.04045, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92)
    y = (linear * linear.new_tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
    lightness = torch.where(
        y > (6 / 29) ** 3, 1.16 * y.clamp(min=1e-9) ** (1 / 3) - 0.16, y * (29 / 3) ** 3 / 100
    )
    return lightness.clamp(0, 1) ** gamma


def segmentation(labels: Tensor) -> Tensor:
    """Labels (B, 1, H, W), whole numbers from 0 to 255, in the colours of PASCAL VOC; (B, 3, H, W).

    Bits 0, 3, 6 of a label are red's highest ones, bits 1, 4, 7 green's, and 2, 5 blue's.
    """
    labels = labels.long()
    channels = [
        sum((labels >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for channel in range(3)
    ]
    return torch.cat([torch.as_tensor(channel) for channel in channels], dim=1).float() / 255


def inpaint(pixels: Tensor, mask: Tensor) -> Tensor:
    """A picture (B, 3, H, W) with -1 where a mask (B, 1, H, W) is above 1/2: what inpainting ControlNets see.

    No file of a picture holds -1, so this is no kind of `inkwash annotate`.
    """
    return torch.where(mask > 0.5, -1.0, pixels)
