"""Pictures that are given: opened, fitted, and turned into what the networks take."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from inkwash.pipeline.record.metadata import opened

MAX_PIXELS = 2**26  # 8192 x 8192
NAME = "filename"  # of a picture's info


def open_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """The picture at `path`, upright, in RGB, in L for masks or in F for depth; what is transparent becomes white.

    Mode P is for maps of labels: the numbers of a palette's colours, or a grey picture's values, as they are, in L.
    Raises ValueError for what is no picture, is damaged, or has more than 2^26 pixels.
    """
    try:
        with opened(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{path} has {image.width}x{image.height} pixels; at most 2^26 are taken")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    if mode == "P":
        try:
            made = as_labels(upright)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    elif "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        made = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert(mode)
    else:
        made = upright.convert(mode)
    made.info[NAME] = path.name
    return made


def as_labels(image: Image.Image) -> Image.Image:
    """The numbers of a palette's colours, or a grey picture's values, in mode L. Raises ValueError for another one."""
    if image.mode not in ("L", "P"):
        raise ValueError(
            f"a map of labels has a palette or is grey, mode P or L, and this has mode {image.mode}"
        )
    return Image.fromarray(np.array(image))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled to fill (width, height), what is too much cut off on both sides alike."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def nearest_size(image: Image.Image, multiple: int) -> tuple[int, int]:
    """The picture's (width, height), each rounded to a multiple."""
    width, height = (max(multiple, round(side / multiple) * multiple) for side in image.size)
    return width, height


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (1, 3, H, W) float32 in [-1, 1] of an RGB picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def to_mask(image: Image.Image) -> Tensor:
    """A mask (1, 1, H, W) in [0, 1] of a picture in L."""
    return torch.from_numpy(np.array(image))[None, None].float() / 255


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of pixels (B, 3 or 1, H, W), clamped to [-1, 1]. Raises FloatingPointError where one is not finite."""
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the decoded picture holds values that are not finite")
    whole = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()) for image in whole]
