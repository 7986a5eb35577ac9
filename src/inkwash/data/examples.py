"""A training picture and its metadata, before anything is decoded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from inkwash.data.captions import CaptionRules
from inkwash.pipeline.images import decoded, in_mode
from inkwash.pipeline.record.metadata import opened_bytes

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff"}
MODES = {"mask": "L", "depth": "F", "labels": "P"}  # of pictures by role; others are RGB


@dataclass(frozen=True)
class Bytes:
    """Location of a picture's bytes: a whole file, or a part of one such as a tar. size: None is to the end."""

    path: Path
    offset: int = 0
    size: int | None = None
    name: str | None = None  # within a tar

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)


class BrokenPicture(ValueError):
    """A picture that can't be read; the message names it."""


@dataclass(frozen=True)
class Example:
    """A picture, the texts that describe it, and how often it is seen.

    pictures: others that belong to it, by their roles: mask, hint, depth, before. repeats: times in an epoch. weight: of its
    loss. columns: of its row in a table, such as aesthetic scores.
    """

    image: Bytes
    captions: tuple[str, ...] = ("",)
    rules: CaptionRules = CaptionRules()
    pictures: Mapping[str, Bytes] = field(default_factory=dict)
    repeats: int = 1
    weight: float = 1.0
    flip: bool = False
    random_crop: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture upright. Raises BrokenPicture."""
        try:
            with opened_bytes(self.image.read(), self.image) as image:
                turns = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return (image.height, image.width) if turns else image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise BrokenPicture(f"{self.image} is not a readable picture: {error}") from error

    @cached_property
    def digest(self) -> str:
        """The sha256 of the picture's bytes."""
        return hashlib.sha256(self.image.read()).hexdigest()

    def open(self, role: str | None = None) -> Image.Image:
        """The picture, or the one of a role, upright, in the mode of MODES. Raises BrokenPicture."""
        where = self.image if role is None else self.pictures[role]
        try:
            with opened_bytes(where.read(), where) as image:
                return in_mode(decoded(image, where), MODES.get(role or "", "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise BrokenPicture(f"{where} is not a readable picture: {error}") from error
