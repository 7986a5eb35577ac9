"""Objects that stand out from a picture's background: their places and number. B batch, H W picture size."""

import torch
import torch.nn.functional as F
from torch import Tensor

APART = 0.2  # from the background, of a pixel of an object, in [-1, 1]
SIDE = 128  # pixels to which a picture is scaled for counting
GROWN = 2  # of these that a region grows, so that gaps within a drawing close
SMALLEST = 0.02  # share of the picture that an object has


def standing_out(pixels: Tensor) -> Tensor:
    """Mask (B, H, W) of where pixels (B, 3, H, W) in [-1, 1] differ from the median of the picture's edge."""
    edge = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[..., 0], pixels[..., -1]], dim=2)
    return (pixels - edge.median(dim=2).values[:, :, None, None]).abs().amax(1) > APART


def on_white(pixels: Tensor) -> Tensor:
    """The parts that stand out of pixels (B, 3, H, W) in [-1, 1], on white."""
    return torch.where(standing_out(pixels)[:, None], pixels, torch.ones_like(pixels))


def count_objects(picture: Tensor) -> int:
    """Number of connected regions that stand out of a picture (3, H, W) in [-1, 1], a little grown, without specks."""
    small = F.interpolate(picture[None], (SIDE, SIDE), mode="area")
    region = F.max_pool2d(standing_out(small).float(), 2 * GROWN + 1, stride=1, padding=GROWN)
    labels = region * torch.arange(1, SIDE**2 + 1, device=region.device).view(1, SIDE, SIDE)
    while True:  # until each region has the greatest label in it
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * region
        if torch.equal(spread, labels):
            break
        labels = spread
    areas = torch.bincount(labels.long().flatten())[1:]
    return int((areas >= SMALLEST * SIDE**2).sum())
