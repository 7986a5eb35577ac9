"""Layout of overlapping tiles, as Krita's plugin has it (comfyui-tooling-nodes). Pairs are of height and width."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from inkwash.serve.comfy.masks import Values, blurred, box_kernel, image_of

Pair = tuple[int, int]


@dataclass(frozen=True)
class TileLayout:
    """Tiles that overlap by twice a padding, numbered down the columns. size, least and padding in pixels.

    blending: width of the soft edge of a tile. Raises ValueError where they don't fit.
    """

    size: Pair
    least: int
    padding: int
    blending: int
    multiple: int

    def __post_init__(self) -> None:
        if self.multiple < 1 or any(side % self.multiple for side in (*self.size, self.least)):
            raise ValueError(f"multiple {self.multiple} does not divide the picture and min_tile_size")
        if not 0 <= self.blending <= self.padding:
            raise ValueError(f"blending {self.blending} is not 0 to padding {self.padding}")
        if self.least <= 2 * self.padding:
            raise ValueError(f"min_tile_size {self.least} is not above twice padding {self.padding}")

    @property
    def counts(self) -> Pair:
        """Number of tiles along each side."""
        step = self.least - 2 * self.padding
        return max(1, self.size[0] // step), max(1, self.size[1] // step)

    def span(self, axis: int, place: int, inset: int = 0) -> Pair:
        """Start and end of a tile along a side. inset: pixels less at each end that another tile overlaps."""
        count, whole = self.counts[axis], self.size[axis]
        length = -(-(whole + (count - 1) * 2 * self.padding) // count)
        length = -(-length // self.multiple) * self.multiple
        start = place * (length - 2 * self.padding)
        end = start + length - (inset if place < count - 1 else 0)
        return start + (inset if place else 0), min(max(end, 0), whole)

    def spans(self, index: int, inset: int = 0) -> tuple[Pair, Pair]:
        """Start and end of a tile, down and across. Raises ValueError for an index that no tile has."""
        down, across = self.counts
        if not 0 <= index < down * across:
            raise ValueError(f"index {index} is not 0 to {down * across - 1}, the tiles that there are")
        return self.span(0, index % down, inset), self.span(1, index // down, inset)

    def cut(self, image: Image.Image, index: int) -> Image.Image:
        """The part of a picture that a tile is. Raises ValueError for one of another size."""
        if image.size != self.size[::-1]:
            raise ValueError(f"a picture of {image.width}x{image.height} is not what was laid out")
        (top, bottom), (left, right) = self.spans(index)
        return image.crop((left, top, right, bottom))

    def weights(self, index: int, blend: bool) -> Values:
        """The mask of a tile (H, W): what it draws, or with soft edges what of it is kept."""
        outer = self.spans(index)
        inner = self.spans(index, self.padding if blend else self.padding - self.blending)
        found = np.zeros([end - start for start, end in outer])
        (top, bottom), (left, right) = (
            (start - first, end - first) for (start, end), (first, _) in zip(inner, outer, strict=True)
        )
        found[top:bottom, left:right] = 1
        return blurred(found, box_kernel(self.blending)) if blend and self.blending else found

    def merged(self, image: Image.Image, index: int, tile: Image.Image) -> Image.Image:
        """A picture with a tile put back, blended at its edges."""
        (top, bottom), (left, right) = self.spans(index)
        if tile.size != (right - left, bottom - top):
            raise ValueError(
                f"a tile of {tile.width}x{tile.height} does not fit {right - left}x{bottom - top}"
            )
        made = image.copy()
        made.paste(tile, (left, top), image_of(self.weights(index, True)))
        return made
