"""The plain name of the colour that an object has in a picture. H W its size.

Hue in degrees [0, 360), saturation and value in [0, 1], as in Smith 1978 (HSV).
"""

import torch
from torch import Tensor

from inkwash.metrics.objects import standing_out

GREYS = ("black", "gray", "white")
HUES = (
    (12, "red"),
    (42, "orange"),
    (68, "yellow"),
    (175, "green"),
    (250, "blue"),
    (300, "purple"),
    (343, "pink"),
)
NAMES = (*GREYS, "brown", *(name for _, name in HUES))
COLOURFUL = 0.3  # share of an object's pixels from which its hue names it, whatever else is grey


def to_hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value (...) of pixels (3, ...) in [0, 1]."""
    r, g, b = pixels
    value, low = pixels.amax(0), pixels.amin(0)
    chroma = value - low
    safe = chroma.clamp_min(1e-6)
    sector = torch.where(
        value == r, (g - b) / safe % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    return sector * 60 % 360, chroma / value.clamp_min(1e-6), value


def colour_names(pixels: Tensor) -> Tensor:
    """The index (...) in NAMES of each pixel (3, ...) in [0, 1]."""
    hue, saturation, value = to_hsv(pixels)
    ends = torch.tensor([end for end, _ in HUES], dtype=hue.dtype, device=hue.device)
    named = torch.bucketize(hue, ends) % len(HUES) + len(GREYS) + 1  # above the last end it is red again
    warm = (hue <= HUES[1][0]) | (hue > 340)
    pale = (warm & (hue < 20) | (hue > 340)) & (saturation < 0.55) & (value > 0.8)
    named = torch.where(pale, NAMES.index("pink"), named)
    named = torch.where((hue > 8) & (hue <= HUES[1][0]) & (value < 0.68), NAMES.index("brown"), named)
    grey = torch.bucketize(value, torch.tensor([0.25, 0.85], dtype=value.dtype, device=value.device))
    return torch.where((saturation < 0.2) | (value < 0.2), grey, named)


def colour_of(crop: Tensor) -> str | None:
    """The name of the colour of what a crop (3, H, W) in [-1, 1] shows; None where it shows nothing but its edge's colour.

    Of several colours it is the one of most pixels; greys count where little else is there.
    """
    inside = standing_out(crop[None])[0]
    if not inside.any():
        return None
    counts = torch.bincount(colour_names((crop[:, inside] + 1) / 2), minlength=len(NAMES))
    if counts[len(GREYS) :].sum() >= COLOURFUL * counts.sum():
        counts[: len(GREYS)] = 0
    return NAMES[int(counts.argmax())]
