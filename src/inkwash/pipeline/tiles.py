"""Layout of overlapping tiles, as Krita's plugin has it (comfyui-tooling-nodes). Pairs are of height and width."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

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
        return self.along(0)[0], self.along(1)[0]

    def along(self, axis: int) -> Pair:
        """Number of tiles along a side, and their length but for the last one's."""
        shared, whole = 2 * self.padding, self.size[axis]
        count = max(1, whole // (self.least - shared))
        length = -(-(whole + (count - 1) * shared) // count)
        length = -(-length // self.multiple) * self.multiple
        if count == 1 or length <= shared:  # a picture that is smaller than what tiles share
            return 1, whole
        # where each of many is rounded up, the last ones may hold nothing of their own; the plugin's would be empty
        return min(count, max(1, 1 + (whole - self.padding - 1) // (length - shared))), length

    @property
    def num(self) -> int:
        """Number of tiles."""
        return self.counts[0] * self.counts[1]

    def span(self, axis: int, place: int, inset: int = 0) -> Pair:
        """Start and end of a tile along a side. inset: pixels less at each end that another tile overlaps."""
        (count, length), whole = self.along(axis), self.size[axis]
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

    def mask(self, index: int, blend: bool) -> Image.Image:
        """The mask of a tile, in mode L: what it draws, or with soft edges what of it is kept."""
        inset = self.padding if blend else self.padding - self.blending
        pairs = zip(self.spans(index), self.spans(index, inset), strict=True)
        down, across = (edge(outer, inner, self.blending if blend else 0) for outer, inner in pairs)
        return Image.fromarray((np.outer(down, across) * 255).round().astype(np.uint8))

    def merged(self, image: Image.Image, index: int, tile: Image.Image) -> Image.Image:
        """A picture with a tile put back, blended at its edges."""
        (top, bottom), (left, right) = self.spans(index)
        if tile.size != (right - left, bottom - top):
            raise ValueError(
                f"a tile of {tile.width}x{tile.height} does not fit {right - left}x{bottom - top}"
            )
        made = image.copy()
        made.paste(tile, (left, top), self.mask(index, True))
        return made


def edge(outer: Pair, inner: Pair, blur: int) -> np.ndarray:
    """1 within the inner of two spans, 0 around it, blurred by a box of a width, over the outer one."""
    found = np.zeros(outer[1] - outer[0])
    found[inner[0] - outer[0] : inner[1] - outer[0]] = 1
    if blur < 2:
        return found
    padded = np.pad(found, ((blur - 1) // 2, blur // 2), "reflect")
    return np.convolve(padded, np.full(blur, 1 / blur), "valid")
