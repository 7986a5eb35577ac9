"""The pictures of controls, fitted and turned into networks' inputs. C channels, H W latent size."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.controls import Control
from inkwash.pipeline.images import in_mode

FACTOR = 8  # a hint's pixels a latent pixel, whatever the first stage's factor


def to_hint(control: Control, channels: int, latent_size: tuple[int, int], like: Tensor) -> Tensor:
    """A control's picture in [0, 1], unshuffled to x's size, (64 C, H, W), so that it is cut as x is.

    An inpainting control's has -1 where it is transparent: what is to be drawn. like: a tensor of the dtype and device.
    Raises ValueError for a number of channels that no picture has, and for an inpainting control without a mask.
    """
    height, width = (side * FACTOR for side in latent_size)
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"{control.name} takes hints of {channels} channels, which no picture has")
    image = control.image.convert("RGB") if control.annotator == "inpaint" else in_mode(control.image, "RGB")
    image = fit(image, (width, height), control.resize)
    if control.annotator == "inpaint" and "A" not in control.image.getbands():
        raise ValueError(f"{control.name} with annotator=inpaint needs the mask of inpaint or outpaint")
    if control.annotator not in ("auto", "none", "inpaint"):
        image = annotate(control.annotator, image)  # at the size that is drawn, as its lines are that thin
    picture = np.array(in_mode(image, mode))
    pixels = torch.from_numpy(picture).view(height, width, -1).permute(2, 0, 1).to(like) / 255
    if control.annotator == "inpaint":
        opacity = np.array(fit(control.image.getchannel("A"), (width, height), control.resize))
        pixels = pixels.masked_fill(torch.from_numpy(opacity).to(pixels.device) < 128, -1)
    return F.pixel_unshuffle(pixels, FACTOR)


def fit(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """A picture of (width, height): scaled to it (just), filling it and cut (crop), or within it (fill).

    What fill leaves free has the median colour of the picture's border.
    """
    if image.size == size:
        return image
    kind = Image.Resampling.LANCZOS
    if how == "just":
        return image.resize(size, kind)
    if how == "crop":
        return ImageOps.fit(image, size, kind)
    return ImageOps.pad(image, size, kind, color=border_colour(image))


def border_colour(image: Image.Image) -> Any:
    """The median colour of a picture's outermost pixels."""
    w, h = image.size
    sides = [(0, 0, w, 1), (0, h - 1, w, h), (0, 0, 1, h), (w - 1, 0, w, h)]
    pixels = np.concatenate([np.asarray(image.crop(box)).reshape(-1, len(image.getbands())) for box in sides])
    median = tuple(int(value) for value in np.median(pixels, axis=0))
    return median if image.mode == "RGB" else int(median[-1])
