"""Grids: one picture drawn with varied settings, along one or two axes, on a labelled sheet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from inkwash.explain.drawing import GREY, INK, wrapped
from inkwash.explain.tiles import Tiles
from inkwash.pipeline.option import number
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import TextToImageRequest

MARGIN, GAP, LABEL = 24, 8, 168  # pixels; LABEL is the width of what stands left of the rows
MIN_TILE, MAX_TILE = 128, 320  # of a tile's longer side
MAX_CELLS = 256
LINE, FOLD = 18, 8  # pixels of a line of text; tiles in a line where there is one axis


@dataclass(frozen=True)
class Axis:
    """A field of the request and its values, as they are written."""

    name: str
    values: tuple[str, ...]

    def label(self, value: str) -> str:
        return value if self.name == "prompt" else f"{self.name} {value}"


def axis(text: str) -> Axis:
    """The axis that a text such as steps=10,20 means; values with commas stand in double quotes, as in CSV.

    Raises ValueError for what is none.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ValueError(f"{text!r} is not an axis such as steps=10,20")
    if name not in TextToImageRequest.model_fields or name == "batch_size":
        fields = ", ".join(sorted(TextToImageRequest.model_fields.keys() - {"batch_size"}))
        raise ValueError(f"{name!r} is not an axis; these are: {fields}")
    return Axis(name, tuple(value.strip() for value in next(csv.reader([values], skipinitialspace=True))))


def cells(request: TextToImageRequest, axes: Sequence[Axis]) -> list[list[TextToImageRequest]]:
    """The request of each cell: rows along the second axis, columns along the first.

    Raises ValueError for another number of axes than one or two, one that is there twice, more than 256 cells, a
    batch, and (pydantic's ValidationError) for values that a request says no to.
    """
    names = [axis.name for axis in axes]
    if not 1 <= len(names) <= 2 or len(set(names)) < len(names):
        raise ValueError(f"a grid has one axis or two different ones, not {', '.join(names) or 'none'}")
    if request.batch_size > 1:
        raise ValueError(f"batch_size {request.batch_size}: a grid draws one picture a cell")
    num = len(axes[0].values) * (len(axes[1].values) if axes[1:] else 1)
    if num > MAX_CELLS:
        raise ValueError(f"{num} pictures are more than a grid's {MAX_CELLS}")
    fields = request.model_dump()
    rows = [{axes[1].name: value} for value in axes[1].values] if axes[1:] else [{}]
    return [
        [TextToImageRequest.model_validate(fields | row | {axes[0].name: value}) for value in axes[0].values]
        for row in rows
    ]


def sheet(request: Request, axes: Sequence[Axis], images: Sequence[Image.Image]) -> Image.Image:
    """The pictures of `cells`, row by row, with what they differ in above and left of them.

    One axis alone is folded into lines of at most 8. The sheet's info holds the parameters of the first picture and
    A1111's names of the axes.
    """
    columns, rows = axes[0], axes[1] if axes[1:] else None
    across = len(columns.values) if rows else min(len(columns.values), FOLD)
    longer = max(max(image.size) for image in images)
    scale = min(max(longer, MIN_TILE), MAX_TILE) / longer
    width = round(max(image.width for image in images) * scale)
    height = round(max(image.height for image in images) * scale)
    heads = [wrapped(columns.label(value), 13, width + GAP - 2, lines=3) for value in columns.values]
    head = LINE * max(map(len, heads)) + 8
    down = GAP if rows else GAP + head  # from one row to the next
    left, top = MARGIN + (LABEL if rows else 0), MARGIN + 58 + head
    tiles = Tiles(
        len(images), across, (width, height),
        origin=(left, top), gaps=(GAP, down), ends=(MARGIN, MARGIN), width=480,
    )  # fmt: skip
    for line, (text, size, colour) in enumerate(titles(request, axes)):
        room = tiles.image.width - 2 * MARGIN
        tiles.text(MARGIN, MARGIN - 6 + 32 * line, text, size, colour, width=room)
    for k, image in enumerate(images):
        tiles.put(k, image, scale)
    for i, lines in enumerate(heads):
        x, y = tiles.place(i)
        for n, text in enumerate(lines):
            tiles.text(x + width / 2, y - 8 - LINE * (len(lines) - n), text, 13, middle=True)
    for j, value in enumerate(rows.values if rows else ()):
        y = tiles.place(j * across)[1]
        for n, text in enumerate(wrapped(rows.label(value), 14, LABEL - 16, lines=6) if rows else ()):
            tiles.text(MARGIN, y + 4 + LINE * n, text, 14)
    made = tiles.image
    made.info["parameters"] = ", ".join([str(images[0].info["parameters"]), *named(axes)])
    return made


def titles(request: Request, axes: Sequence[Axis]) -> list[tuple[str, int, str]]:
    """The heading of a sheet, of what its pictures share, as lines of text, size and colour."""
    varied = {axis.name: axis for axis in axes}
    title = " ".join(request.prompts[0].split()) or "(empty prompt)"
    if "prompt" in varied:
        title = f"{len(varied['prompt'].values)} prompts"
    shared = {"sampler": request.sampler, "steps": f"{request.steps} steps", "seed": f"seed {request.seed}"}
    shared |= {
        "schedule": f"{request.schedule} schedule",
        "cfg_scale": f"cfg_scale {number(request.cfg_scale)}",
    }
    said = ", ".join(text for name, text in shared.items() if name not in varied)
    return [(title, 22, INK), (said, 14, GREY)]


def named(axes: Sequence[Axis]) -> list[str]:
    """The axes as A1111's script writes them."""
    said = ["Script: X/Y/Z plot"]
    for letter, one in zip("XY", axes, strict=False):
        said += [f"{letter} Type: {one.name}", f"{letter} Values: {json.dumps(', '.join(one.values))}"]
    return said
