"""Sets of pictures on disk, read in batches. B batch, H W picture size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inkwash.pipeline.images import fitted, open_picture, to_pixels
from inkwash.pipeline.record.metadata import opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BATCH = 32  # pictures in memory at once


@dataclass(frozen=True)
class PictureSet:
    """Pictures that are all brought to one size (width, height)."""

    name: str
    paths: tuple[Path, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[Tensor]:
        """Pixels (B, 3, H, W) float32 in [-1, 1], in order. Raises ValueError naming a picture that can't be read."""
        for first in range(0, len(self), BATCH):
            some = self.paths[first : first + BATCH]
            yield torch.cat([to_pixels(fitted(open_picture(path), self.size)) for path in some])

    def captions(self) -> list[str]:
        """The text beside each picture, in a file of its name that ends in .txt. Raises ValueError where one is missing."""
        texts = [path.with_suffix(".txt") for path in self.paths]
        if missing := [text for text in texts if not text.is_file()]:
            raise ValueError(f"{missing[0]} is not there: each picture's caption is in a text file beside it")
        return [" ".join(text.read_text("utf-8").split()) for text in texts]


def picture_set(path: Path, size: tuple[int, int] | None = None) -> PictureSet:
    """A picture, or all pictures of a folder and those in it, by name.

    size: (width, height) to scale and crop them to. Raises ValueError where there is none, for a file that is none, and,
    without a size, where they have several.
    """
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    paths = tuple(one for one in inside if one.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"there is no picture at {path}: {', '.join(SUFFIXES)} are taken")
    return PictureSet(str(path), paths, size or common_size(paths))


def common_size(paths: tuple[Path, ...]) -> tuple[int, int]:
    """The size that all have."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with opened(path) as image:
                sizes.setdefault(image.size, path)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is not a readable picture: {error}") from error
        if len(sizes) > 1:
            (a, one), (b, other) = sizes.items()
            said = " and ".join(f"{w}x{h} ({one.name})" for (w, h), one in ((a, one), (b, other)))
            raise ValueError(
                f"the pictures are of several sizes, {said}: give --size, such as --size {a[0]}x{a[1]}"
            )
    return next(iter(sizes))
