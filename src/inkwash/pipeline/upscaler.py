"""A pixel upscaler that is open, and pictures enlarged by it. B batch, H W pixels, s the network's scale."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from inkwash.diffusion.windows import blended, spans
from inkwash.pipeline.images import to_images, to_pixels
from inkwash.weights.checkpoint import build
from inkwash.weights.hashes import hash_of
from inkwash.weights.inputs import Inputs
from inkwash.weights.upscalers import read_upscaler

TILE = 256  # pixels a side that the network sees at once
MARGIN = 24  # pixels at a tile's edges that are only seen, at most; no network looks much farther
RAMP = 16  # pixels over which a tile's weight then falls
MAX_PASSES = 3  # of the network over its own output
MAX_SIDE = 16384  # pixels of a picture that is made


class Tile(NamedTuple):
    """One of all tiles is done."""

    index: int
    total: int


OnTile = Callable[[Tile], None]


@dataclass(frozen=True)
class Upscaler:
    """A network that enlarges pixels, on a device in a dtype. factor: what its file is for."""

    network: nn.Module
    factor: float
    path: Path

    # as a model's
    inputs, refiner, prior, text_encoders = Inputs("upscaler"), None, None, ()
    part_hashes = MappingProxyType({})

    @property
    def name(self) -> str:
        """The upscaler's name in recipes: that of its file, without the suffix."""
        return self.path.stem

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the file's sha256."""
        return upscaler_hash(self.path)[:10]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def config(self) -> Any:
        return self.network.config

    def size(self, image: Image.Image, factor: float | None = None) -> tuple[int, int]:
        """(width, height) of a picture made larger by a factor. Raises ValueError above MAX_SIDE."""
        factor = factor or self.factor
        width, height = (max(1, round(side * factor)) for side in image.size)
        if max(width, height) > MAX_SIDE:
            raise ValueError(
                f"{width}x{height} is larger than {MAX_SIDE} pixels a side; give a smaller factor"
            )
        return width, height

    def enlarged(
        self, image: Image.Image, size: tuple[int, int], tile: int = TILE, on_tile: OnTile | None = None
    ) -> Image.Image:
        """A picture, RGB or RGBA, in another (width, height): by the network till it is as large, then by Lanczos.

        Opacity is enlarged by the network too, as a grey picture, as Real-ESRGAN does.
        """
        bands = [image.convert("RGB")]
        if image.mode == "RGBA":
            bands.append(Image.merge("RGB", [image.getchannel("A")] * 3))
        made = [self.band(band, size, tile, on_tile) for band in bands]
        if len(made) == 2:
            made[0].putalpha(made[1].convert("L"))
        return made[0]

    def band(
        self, image: Image.Image, size: tuple[int, int], tile: int, on_tile: OnTile | None
    ) -> Image.Image:
        """Enlarge an RGB picture to (width, height); see `enlarged`."""
        for _ in range(MAX_PASSES):
            pixels = self.pixels((to_pixels(image) + 1) / 2, tile, on_tile)
            image = to_images(pixels * 2 - 1)[0]
            if self.config.scale == 1 or (image.width >= size[0] and image.height >= size[1]):
                break
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

    @torch.inference_mode()
    def pixels(self, pixels: Tensor, tile: int = TILE, on_tile: OnTile | None = None) -> Tensor:
        """Enlarge pixels (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), by overlapping tiles of so many pixels a side.

        Where the network looks no farther than MARGIN, it is what it makes of the whole picture.
        """
        m, (height, width) = self.config.multiple, pixels.shape[2:]
        margin = -(
            -min(self.config.reach, MARGIN) // m
        )  # from here in squares of m pixels, whose grid tiles keep
        overlap = 2 * margin + -(-RAMP // m)
        window = max(tile // m, 2 * overlap)
        padded = mirrored(pixels, -height % m, -width % m)
        rows, columns = padded.shape[2] // m, padded.shape[3] // m
        total = len(spans(rows, window, overlap)) * len(spans(columns, window, overlap))
        done = iter(range(total))
        weight = next(self.network.parameters())

        def make(rows: slice, columns: slice) -> Tensor:
            seen = padded[:, :, m * rows.start : m * rows.stop, m * columns.start : m * columns.stop]
            seen = seen.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
            made = self.network(seen).float().cpu()
            if on_tile:
                on_tile(Tile(next(done), total))
            return made

        made = blended(make, rows, columns, window, overlap, margin)
        s = self.config.scale
        return made[:, :, : s * height, : s * width]


def upscaler_hash(path: Path) -> str:
    """The first 12 hex digits of a file's sha256; of ncnn's pair that of both; nothing where there is none."""
    pair = [path.with_suffix(suffix) for suffix in (".param", ".bin")]
    files = [file for file in (pair if all(file.is_file() for file in pair) else [path]) if file.is_file()]
    return hash_of(files)[:12] if files else ""


def mirrored(pixels: Tensor, below: int, right: int) -> Tensor:
    """Pixels with rows and columns added, mirrored as far as they reach, then repeated."""
    for axis, num in ((2, below), (3, right)):
        while num:
            step = min(num, pixels.shape[axis] - 1) or 1
            mode = "reflect" if pixels.shape[axis] > 1 else "replicate"
            pixels = F.pad(pixels, (0, 0, 0, step) if axis == 2 else (0, step, 0, 0), mode=mode)
            num -= step
    return pixels


def open_upscaler(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Upscaler:
    """Open ESRGAN's, Real-ESRGAN's, BSRGAN's or SwinIR's file, or ncnn's pair. Raises ModelFileError for another one."""
    component, factor = read_upscaler(Path(path))
    return Upscaler(build(component, device, dtype).eval(), factor, Path(path))
