"""Grids: the same picture along one or two axes of its settings, on one labelled sheet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from inkwash.explain.plot import GREY, INK, PAPER, fitting, font, wrapped
from inkwash.pipeline.request import Request, number

MARGIN, GAP, LABEL = 24, 8, 168  # pixels; LABEL is the width of what stands left of the rows
MIN_TILE, MAX_TILE = 128, 320  # of a tile's longer side
MAX_CELLS = 256


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
        raise ValueError(f"{text!r} is no axis such as steps=10,20")
    if name not in Request.model_fields or name == "batch_size":
        fields = ", ".join(sorted(Request.model_fields.keys() - {"batch_size"}))
        raise ValueError(f"{name!r} is no axis; these are: {fields}")
    return Axis(name, tuple(value.strip() for value in next(csv.reader([values], skipinitialspace=True))))


def cells(request: Request, axes: Sequence[Axis]) -> list[list[Request]]:
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
        [Request.model_validate(fields | row | {axes[0].name: value}) for value in axes[0].values]
        for row in rows
    ]


def sheet(request: Request, axes: Sequence[Axis], images: Sequence[Image.Image]) -> Image.Image:
    """The pictures of `cells`, row by row, with what they differ in above and left of them.

    Its info holds the parameters of the first one and A1111's names of the axes.
    """
    columns, rows = axes[0], axes[1] if axes[1:] else None
    longer = max(max(image.size) for image in images)
    scale = min(max(longer, MIN_TILE), MAX_TILE) / longer
    across, down = len(columns.values), len(images) // len(columns.values)
    width = round(max(image.width for image in images) * scale)
    height = round(max(image.height for image in images) * scale)
    left = MARGIN + (LABEL if rows else 0)
    heads = [wrapped(columns.label(value), 14, width, lines=3) for value in columns.values]
    top = MARGIN + 34 + 24 + 18 * max(map(len, heads)) + 8
    total = max(left + across * (width + GAP) - GAP + MARGIN, 480)
    made = Image.new("RGB", (total, top + down * (height + GAP) - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(made)
    inner = total - 2 * MARGIN
    title = " ".join(request.prompts[0].split()) or "(empty prompt)"
    if any(axis.name == "prompt" for axis in axes):
        title = f"{len(columns.values if columns.name == 'prompt' else axes[1].values)} prompts"
    draw.text((MARGIN, MARGIN - 6), fitting(draw, title, 22, inner), INK, font(22))
    shared = {"sampler": request.sampler, "steps": f"{request.steps} steps", "seed": f"seed {request.seed}"}
    shared |= {
        "schedule": f"{request.schedule} schedule",
        "cfg_scale": f"cfg_scale {number(request.cfg_scale)}",
    }
    said = ", ".join(text for name, text in shared.items() if name not in {axis.name for axis in axes})
    draw.text((MARGIN, MARGIN + 26), fitting(draw, said, 14, inner), GREY, font(14))
    for i, lines in enumerate(heads):
        for n, line in enumerate(lines):
            below = top - 8 - 18 * (len(lines) - n)
            draw.text((left + i * (width + GAP) + width / 2, below), line, INK, font(14), anchor="ma")
    for j in range(down):
        y = top + j * (height + GAP)
        if rows:
            for n, line in enumerate(wrapped(rows.label(rows.values[j]), 14, LABEL - 16, lines=6)):
                draw.text((MARGIN, y + 4 + 18 * n), line, INK, font(14))
        for i, image in enumerate(images[j * across : (j + 1) * across]):
            tile = fitted_tile(image, (width, height), scale)
            made.paste(tile, (left + i * (width + GAP), y))
    made.info["parameters"] = ", ".join([str(images[0].info["parameters"]), *named(axes)])
    return made


def fitted_tile(image: Image.Image, room: tuple[int, int], scale: float) -> Image.Image:
    """The picture at this scale, in the middle of a tile of paper."""
    tile = Image.new("RGB", room, PAPER)
    size = (round(image.width * scale), round(image.height * scale))
    shown = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    tile.paste(shown, ((room[0] - size[0]) // 2, (room[1] - size[1]) // 2))
    return tile


def named(axes: Sequence[Axis]) -> list[str]:
    """The axes as A1111's script writes them."""
    said = ["Script: X/Y/Z plot"]
    for letter, one in zip("XY", axes, strict=False):
        said += [f"{letter} Type: {one.name}", f"{letter} Values: {json.dumps(', '.join(one.values))}"]
    return said
