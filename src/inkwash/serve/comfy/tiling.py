"""Requests of samplers, and one request of tiles that have a sampler each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from inkwash.pipeline.tiles import TileLayout
from inkwash.serve.comfy.links import Links
from inkwash.serve.comfy.table import MERGE

MULTIPLE = 8  # pixels: what tiles of a request are laid out in


class Hint(NamedTuple):
    """A control of a request: its name, its numbers, its picture, and the node that applies it."""

    name: str
    values: dict[str, Any]
    image: Image.Image
    node: str


class Drawing(NamedTuple):
    """The request of one sampler: a task, its options, model, pictures and controls."""

    task: str
    values: dict[str, Any]
    model: str
    images: dict[str, Image.Image]
    controls: list[Hint]
    sampler: str


def tiled(links: Links, last: str, drawing_of: Callable[[str], Drawing]) -> Drawing:
    """Join the requests of several samplers, each of a tile of one picture, into one.

    last: the node that merges the last tile. drawing_of: the request of a decoder's sampler. Raises NodeError for tiles
    that one request can't mean: of other settings, pictures, masks or order.
    """
    layout, merges, whole = merged(links, last)
    tiles = [drawing_of(links.source(id, "tile", "VAEDecode", "VAEDecodeTiled")) for id in merges]
    first = tiles[0]
    hints = [hint._replace(image=whole_hint(links, hint)) for hint in first.controls]
    for k, (id, tile) in enumerate(zip(merges, tiles, strict=True)):
        parts = {"image": layout.cut(whole, k), "mask": layout.mask(k, False)}
        if tile.task != "inpaint" or not equal(parts, tile.images):
            raise links.fail(id, f"tile {k} must be drawn of its part of the picture, with its mask", "tile")
        if settings(tile) != settings(first):
            raise links.fail(id, f"tile {k} is drawn by other settings than the first one", "tile")
        for hint, seen in zip(hints, tile.controls, strict=True):
            if not equal({"image": layout.cut(hint.image, k)}, {"image": seen.image}):
                raise links.fail(seen.node, f"tile {k} must see its part of the control's picture", "image")
    if first.values["soft_mask"]:
        raise links.fail(merges[0], "tiles are drawn without DifferentialDiffusion here", "tile")
    masks = ("mask_blur", "soft_mask", "blend_mask")
    values = {name: value for name, value in first.values.items() if name not in masks}
    values |= {"width": whole.width, "height": whole.height, "tile": layout.least}
    values |= {"tile_padding": layout.padding, "tile_blending": layout.blending}
    return Drawing("image_to_image", values, first.model, {"image": whole}, hints, first.sampler)


def merged(links: Links, last: str) -> tuple[TileLayout, list[str], Image.Image]:
    """The tiles that a chain of nodes merges: their layout, the nodes in the order of the tiles, and the whole picture."""
    layout, chain = links.layout(last), [last]
    if layout.multiple != MULTIPLE:
        raise links.fail(last, f"multiple must be {MULTIPLE} here", "layout")
    while links.kind(found := links.link(chain[-1], "image")[0]) == MERGE and len(chain) < layout.num:
        chain.append(found)
    merges = chain[::-1]
    for k, id in enumerate(merges):
        if links.value(id, "index", int) != k or len(merges) != layout.num or links.layout(id) != layout:
            raise links.fail(id, f"all {layout.num} tiles must be merged here, in their order", "index")
    return layout, merges, links.image(*links.link(merges[0], "image"))


def whole_hint(links: Links, hint: Hint) -> Image.Image:
    """The picture that a tile's control sees a part of."""
    part = links.source(hint.node, "image", "ETN_ExtractImageTile")
    return links.image(*links.link(part, "image"))


def settings(drawing: Drawing) -> tuple[Any, ...]:
    """Settings that all tiles of one request share."""
    controls = [(hint.name, hint.values) for hint in drawing.controls]
    return drawing.task, drawing.values, drawing.model, controls


def equal(some: Mapping[str, Image.Image], others: Mapping[str, Image.Image]) -> bool:
    """Return True for pictures of the same roles, modes, sizes and pixels."""
    return some.keys() == others.keys() and all(
        (image.mode, image.size) == (others[role].mode, others[role].size)
        and image.tobytes() == others[role].tobytes()
        for role, image in some.items()
    )
