"""Input pictures: opened, fitted, and turned into networks' inputs."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from inkwash.models import clip
from inkwash.pipeline.record.metadata import FORMATS, embedded, opened, read_parameters

MAX_PIXELS = 2**26  # 8192 x 8192
NAME = "filename"  # of a picture's info


class Picture(Image.Image):
    """An image whose own `save` keeps its recipe in PNG, JPEG and WebP, as `save_image` does."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save the image with the recipe of its `info`; the rest as Pillow's `Image.save`."""
        suffix = Path(str(getattr(fp, "name", fp))).suffix.lower()
        kind = (format or FORMATS.get(suffix, "")).upper().replace("JPG", "JPEG")
        super().save(fp, format, **(embedded(self.info, kind) | params))


def open_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """The picture at `path`, upright, in a mode as of `in_mode`.

    Raises ValueError for what is no picture, is damaged, or has more than 2^26 pixels.
    """
    try:
        with opened(path) as image:
            upright = decoded(image, path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error
    try:
        converted = in_mode(upright, mode)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    converted.info[NAME] = path.name
    if mode == "RGBA" and (text := read_parameters(path)):  # of a picture that is to stay, but for its size
        converted.info["parameters"] = text
    return converted


def decoded(image: Image.Image, name: object) -> Image.Image:
    """The picture with its pixels read, upright. name: for errors. Raises ValueError for more than 2^26 pixels."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has {image.width}x{image.height} pixels; at most 2^26 are taken")
    image.load()
    return turned(image)


def turned(image: Image.Image) -> Image.Image:
    """The picture upright, as far as its EXIF block can be read."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ImageOps.exif_transpose(image)
    except Exception:  # whatever a damaged block makes Pillow raise, the picture stays readable
        return image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """A picture of any of Pillow's modes as a task takes it.

    RGB: transparent parts become white. RGBA: the same, unless it is not opaque everywhere. L, for masks: the opacity of a
    picture that is not opaque (as A1111), else how light it is. F, for depth: the values as they are. P, for maps of
    labels: see `as_labels`. Raises ValueError for a picture that has no such form.
    """
    if mode == "P":
        return as_labels(image)
    if mode == "F" and image.mode in ("F", "I", "I;16", "I;16L", "I;16B", "I;16N"):
        return Image.fromarray(np.asarray(image).astype(np.float32))
    image = in_eight_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if image.mode == "PA":  # Pillow drops its opacity
            rgba.putalpha(image.getchannel("A"))
        opacity = rgba.getchannel("A")
        if mode in ("L", "RGBA") and opacity.getextrema() != (255, 255):
            return opacity if mode == "L" else rgba
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB" if mode == "RGBA" else mode)


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as L: 65535 is white, of floats up to 1 it is 1."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    white = 65535.0
    if image.mode == "F":
        white = 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))


def as_labels(image: Image.Image) -> Image.Image:
    """The numbers of a palette's colours, or a grey picture's values, in mode L. Raises ValueError for another one."""
    if image.mode not in ("L", "P"):
        raise ValueError(
            f"a map of labels has a palette or is grey, mode P or L, and this has mode {image.mode}"
        )
    return Image.fromarray(np.array(image))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to fill (width, height), and crop the rest evenly from both sides."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def nearest_size(image: Image.Image, multiple: int) -> tuple[int, int]:
    """The picture's (width, height), each rounded to a multiple."""
    width, height = (max(multiple, round(side / multiple) * multiple) for side in image.size)
    return width, height


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (1, 3, H, W) float32 in [-1, 1] of an RGB picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def to_clip(image: Image.Image, side: int) -> Tensor:
    """Pixels (1, 3, side, side) as CLIP's vision towers take them, of the middle of an RGB picture."""
    short = min(image.size)
    size = [side if edge == short else int(side * edge / short) for edge in image.size]
    small = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = ((edge - side) // 2 for edge in size)
    pixels = (to_pixels(small.crop((left, top, left + side, top + side))) + 1) / 2
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.MEAN, clip.STD))
    return (pixels - mean) / std


def to_mask(image: Image.Image) -> Tensor:
    """A mask (1, 1, H, W) in [0, 1] of a picture in L."""
    return torch.from_numpy(np.array(image))[None, None].float() / 255


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of pixels (B, 3 or 1, H, W), clamped to [-1, 1]. Raises FloatingPointError where one is not finite."""
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the decoded picture holds values that are not finite")
    whole = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()) for image in whole]
