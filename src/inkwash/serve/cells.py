"""A drawing as the cells of a grid, how long it takes, and its thumbnails."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.pipeline.request import Request

THUMBNAIL = 256  # pixels


def num_steps(request: "Request") -> int:
    """About how many steps a request takes."""
    strength = getattr(request, "strength", 1.0)
    steps = request.steps
    if getattr(request, "step_rule", "exact") != "exact":
        steps = max(1, round(steps * strength))
    if (
        getattr(request, "tile", None)
        and getattr(request, "tile_padding", None) is not None
        and request.width
    ):
        from inkwash.pipeline.tasks.tiles import layout_of

        steps *= layout_of(request).num  # type: ignore[arg-type]
    if getattr(request, "hires", 1) > 1:
        steps += round((request.hires_steps or request.steps) * request.hires_strength)  # type: ignore[attr-defined]
    return steps


def axes_of(grid: Mapping[str, Iterable[Any]]) -> list[Any]:
    from inkwash.explain.sheets import Axis

    return [Axis(name, tuple(map(str, values))) for name, values in grid.items()]


def cells_of(request: "Request", grid: Mapping[str, Iterable[Any]]) -> "Iterator[Request]":
    """The request of each cell of a grid; the request itself where there is none."""
    if not grid:
        yield request
        return
    from inkwash.explain.sheets import cells

    for row in cells(request, axes_of(grid)):  # type: ignore[arg-type]
        yield from row


def sheet_of(request: "Request", grid: Mapping[str, Iterable[Any]], pictures: "list[Image]") -> "Image":
    from inkwash.explain.sheets import sheet

    return sheet(request, axes_of(grid), pictures)


def thumbnail(image: "Image", path: Path) -> None:
    """A small WebP without a recipe."""
    from PIL import Image

    from inkwash.files import atomic

    small = Image.Image.copy(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    with atomic(path) as partial:
        Image.Image.save(small, partial, "WEBP", quality=80)
