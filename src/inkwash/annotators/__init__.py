"""Hints for ControlNets from pictures, by formulas alone. B batch, C channels, H W pixels; values in [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Literal

from torch import Tensor

from inkwash.annotators.edges import canny, lineart, scribble
from inkwash.annotators.surfaces import depth, normal
from inkwash.annotators.tones import blur, palette, recolor, segmentation, tile


@dataclass(frozen=True)
class Annotator:
    """A function from a picture, and numbers with defaults, to a hint (B, 1 or 3, H, W).

    sees: RGB, pixels (B, 3, H, W); F, a map of depth (B, 1, H, W) of any range; P, whole labels (B, 1, H, W).
    """

    draw: Callable[..., Tensor]
    sees: Literal["RGB", "F", "P"] = "RGB"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that `draw` takes."""
        return tuple(signature(self.draw).parameters)[1:]


ANNOTATORS = {
    "blur": Annotator(blur),
    "canny": Annotator(canny),
    "depth": Annotator(depth, "F"),
    "lineart": Annotator(lineart),
    "normal": Annotator(normal, "F"),
    "palette": Annotator(palette),
    "recolor": Annotator(recolor),
    "scribble": Annotator(scribble),
    "segmentation": Annotator(segmentation, "P"),
    "tile": Annotator(tile),
}
