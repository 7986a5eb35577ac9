"""Pictures composed of drawings, with exact captions, boxes, layers and relations. H W picture size.

Every random choice comes from the generator that is passed in, so a seed and an index name a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image

from recipes.mini.colours import NAMED, MainColour, main_colour, turn
from recipes.mini.drawings import CLIPART, SIDE, Drawing
from recipes.mini.words import noun, says_colour

OPPOSITE = {"left of": "right of", "above": "below", "in front of": "behind"}
OPPOSITE |= {value: key for key, value in OPPOSITE.items()}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "gray": (158, 158, 162),
    "red": (214, 60, 54),
    "orange": (246, 150, 56),
    "yellow": (250, 220, 96),
    "green": (92, 176, 98),
    "blue": (70, 124, 214),
    "purple": (140, 92, 190),
    "pink": (246, 166, 200),
    "brown": (132, 88, 56),
    "light blue": (176, 214, 246),
    "light green": (190, 230, 178),
}


@dataclass(frozen=True)
class Placed:
    """A drawing in a picture. box: x0, y0, x1, y1 in pixels, ends excluded, hidden parts included.

    layer: 1 is the lowest. colour: the one that the caption says, or None. drawing: its index.
    """

    name: str
    style: str
    colour: str | None
    box: tuple[int, int, int, int]
    layer: int
    drawing: int


@dataclass(frozen=True)
class Picture:
    """image: uint8 (H, W, 3). layers: uint8 (H, W), 0 for background, k where the object of layer k shows.

    captions: up to four wordings, the first one `caption`. relations: (i, relation, j) over positions in
    `objects`; `caption` says them all.
    """

    image: np.ndarray
    layers: np.ndarray
    caption: str
    captions: tuple[str, ...]
    kind: str
    objects: tuple[Placed, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


# ---------------------------------------------------------------- words


def caption(drawing: Drawing, colour: str | None = None) -> str:
    """The main form: "a taxi, noto style"; clip art's names are no nouns to trust, so they get no article."""
    if drawing.style == CLIPART:
        return f"{drawing.name}, clipart style"
    return f"{noun(drawing.name, colour)}, {drawing.style} style"


def captions(drawing: Drawing, rng: np.random.Generator, colour: str | None = None) -> tuple[str, ...]:
    """Up to four different captions, the main form first; the others lack the style, or add keywords.

    colour: one that must be said. Without it one form says the drawing's own colour, if it has one.
    """
    words = [w for w in drawing.keywords if w.lower() != drawing.name.lower() and len(w) > 2]
    if colour is not None:
        words = [w for w in words if not says_colour(w)]
    some = [words[i] for i in rng.permutation(len(words))[: int(rng.integers(1, 4))]]
    said, style = noun(drawing.name, colour), f"{drawing.style} style"
    if drawing.style == CLIPART:
        forms = [
            drawing.name,
            ", ".join([f"clip art of {drawing.name}", *some]),
            ", ".join([drawing.name, *some, style]),
        ]
    else:
        plain = f"{colour} {drawing.name}" if colour else drawing.name
        forms = [said, ", ".join([f"a drawing of {said}", *some, style]), f"{plain}, {style}"]
        own = drawing_colour(drawing)
        if colour is None and own is not None and own.name and not says_colour(drawing.name):
            forms.insert(1, caption(drawing, own.name))
    return tuple(dict.fromkeys([caption(drawing, colour), *forms]))[:4]


def drawing_colour(drawing: Drawing) -> MainColour | None:
    return main_colour(np.asarray(drawing.pixels))


# ---------------------------------------------------------------- pixels


def paste(
    image: np.ndarray, layers: np.ndarray, rgba: np.ndarray, x: int, y: int, layer: int
) -> tuple[int, int, int, int]:
    """Lays a drawing over float32 image (H, W, 3) in place, marks `layers`, returns its box."""
    h, w = rgba.shape[:2]
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    under = image[y : y + h, x : x + w]
    under += alpha * (rgba[..., :3] - under)
    solid = rgba[..., 3] >= 128
    layers[y : y + h, x : x + w][solid] = layer
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return int(x + columns[0]), int(y + rows[0]), int(x + columns[-1] + 1), int(y + rows[-1] + 1)


def cut(rgba: np.ndarray) -> np.ndarray:
    """The drawing without its transparent margin."""
    solid = rgba[..., 3] >= 128
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fit(rgba: np.ndarray, width: float, height: float) -> np.ndarray:
    """The drawing scaled to lie in a box, its aspect kept."""
    scale = min(width / rgba.shape[1], height / rgba.shape[0])
    size = (max(1, int(rgba.shape[1] * scale)), max(1, int(rgba.shape[0] * scale)))
    return np.asarray(Image.fromarray(rgba).resize(size, Image.Resampling.LANCZOS))


def finish(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


# ---------------------------------------------------------------- pictures of one drawing


def on_white(
    drawing: Drawing, rgba: np.ndarray, kind: str, texts: tuple[str, ...], colour: str | None
) -> Picture:
    image = np.full((*rgba.shape[:2], 3), 255, np.float32)
    layers = np.zeros(rgba.shape[:2], np.uint8)
    box = paste(image, layers, rgba, 0, 0, 1)
    placed = Placed(drawing.name, drawing.style, colour, box, 1, drawing.index)
    return Picture(finish(image), layers, texts[0], texts, kind, (placed,))


def single(drawing: Drawing, rng: np.random.Generator | None = None) -> Picture:
    """A drawing on pure white, of kind "single" or "clipart". Without a generator: its main caption only."""
    texts = (caption(drawing),) if rng is None else captions(drawing, rng)
    kind = CLIPART if drawing.style == CLIPART else "single"
    return on_white(drawing, np.asarray(drawing.pixels), kind, texts, None)


def recoloured(drawing: Drawing, rng: np.random.Generator) -> Picture | None:
    """A drawing turned to another named colour, on white.

    None where it has no clear main hue, or a name that says a colour already.
    """
    changed = other_colour(drawing, rng)
    if changed is None:
        return None
    rgba, colour = changed
    return on_white(drawing, rgba, "recoloured", captions(drawing, rng, colour), colour)


def other_colour(drawing: Drawing, rng: np.random.Generator) -> tuple[np.ndarray, str] | None:
    """The drawing's pixels in a new colour, and the colour."""
    main = None if says_colour(drawing.name) else drawing_colour(drawing)
    if main is None:
        return None
    names = list(NAMED)
    for i in rng.permutation(len(names)):
        if names[i] == main.name:
            continue
        if (made := turn(np.asarray(drawing.pixels), main, names[i])) is not None:
            return made, names[i]
    return None


# ---------------------------------------------------------------- scenes


@dataclass(frozen=True)
class World:
    """The drawings that scenes are composed from."""

    drawings: Sequence[Drawing]

    @cached_property
    def by_style(self) -> dict[str, list[Drawing]]:
        """Emoji with short names: long ones do not fit a caption of three."""
        groups: dict[str, list[Drawing]] = {}
        for drawing in self.drawings:
            if drawing.style != CLIPART and len(drawing.name) <= 26 and len(drawing.name.split()) <= 4:
                groups.setdefault(drawing.style, []).append(drawing)
        return groups

    @cached_property
    def common(self) -> dict[str, list[Drawing]]:
        return {style: [d for d in group if d.common] for style, group in self.by_style.items()}

    @cached_property
    def clipart(self) -> list[Drawing]:
        return [d for d in self.drawings if d.style == CLIPART and len(d.name) <= 24]


Cell = tuple[float, float, float, float]


def scene(world: World, rng: np.random.Generator, size: int | tuple[int, int] = SIDE) -> Picture:
    """One to three drawings of one style over a background, with every relation that the caption says.

    size: side, or (width, height), at least 32 pixels each. Raises ValueError for a smaller one, or when no
    style of the world has three drawings.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < 32:
        raise ValueError(f"a scene is {width}x{height} pixels; the least is 32x32")
    styles = [style for style, group in world.by_style.items() if len({d.name for d in group}) >= 3]
    if not styles:
        raise ValueError("a scene needs three drawings of one style")
    style = styles[rng.integers(len(styles))]
    count = int(rng.choice([1, 2, 3], p=[0.15, 0.6, 0.25]))
    chosen = choose(world, style, count, rng)
    pixels, colours = dress(chosen, rng)
    image, ground = background(
        world, width, height, rng, {main.name for p in pixels if (main := main_colour(p))}
    )
    cells, order, phrase, relations = arrange(count, width, height, rng, [cut(p) for p in pixels])
    layers = np.zeros((height, width), np.uint8)
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for layer, i in enumerate(order, 1):
        x0, y0, x1, y1 = cells[i]
        rgba = fit(cut(pixels[i]), x1 - x0, y1 - y0)
        room_x, room_y = x1 - x0 - rgba.shape[1], y1 - y0 - rgba.shape[0]
        x, y = x0 + rng.random() * room_x, y0 + rng.random() * room_y
        boxes[i] = paste(image, layers, rgba, int(x), int(y), layer)
    objects = tuple(
        Placed(d.name, style, colours[i], boxes[i], order.index(i) + 1, d.index) for i, d in enumerate(chosen)
    )
    nouns = [noun(d.name, colour) for d, colour in zip(chosen, colours, strict=True)]
    said = phrase.format(*nouns)
    texts = [f"{said} {ground}, {style} style", f"{said}, {style} style", f"{said} {ground}"]
    if count == 2:
        i, relation, j = relations[0]
        texts.append(f"{nouns[j]} {OPPOSITE[relation]} {nouns[i]} {ground}, {style} style")
    else:
        texts.append(f"a drawing of {said} {ground}, {style} style")
    return Picture(finish(image), layers, texts[0], tuple(texts), "scene", objects, relations)


def choose(world: World, style: str, count: int, rng: np.random.Generator) -> list[Drawing]:
    """Drawings of different names, mostly common ones."""
    chosen: list[Drawing] = []
    while len(chosen) < count:
        group = (
            world.common[style]
            if rng.random() < 0.75 and len(world.common[style]) >= 3
            else world.by_style[style]
        )
        drawing = group[rng.integers(len(group))]
        if all(drawing.name != d.name for d in chosen):
            chosen.append(drawing)
    return chosen


def dress(chosen: list[Drawing], rng: np.random.Generator) -> tuple[list[np.ndarray], list[str | None]]:
    """Pixels of the drawings, some recoloured, and the colours that the caption says of them."""
    pixels, colours = [], []
    for drawing in chosen:
        rgba, colour = np.asarray(drawing.pixels), None
        lot = rng.random()
        if lot < 0.35 and (changed := other_colour(drawing, rng)) is not None:
            rgba, colour = changed
        elif lot < 0.6 and not says_colour(drawing.name) and (main := drawing_colour(drawing)) is not None:
            colour = main.name
        pixels.append(rgba)
        colours.append(colour)
    return pixels, colours


def background(
    world: World, width: int, height: int, rng: np.random.Generator, avoid: set[str | None]
) -> tuple[np.ndarray, str]:
    """Pixels float32 (H, W, 3) and the words for them. avoid: colours that the objects would vanish in."""
    names = [name for name in BACKGROUNDS if name not in avoid]
    first, second = (names[i] for i in rng.permutation(len(names))[:2])
    a, b = (np.array(BACKGROUNDS[name], np.float32) for name in (first, second))
    if first not in ("white", "black"):
        a = np.clip(a + rng.uniform(-8, 8, 3).astype(np.float32), 0, 255)
    lot = rng.random()
    if lot < 0.25:
        down = bool(rng.random() < 0.5)
        ramp = np.linspace(0, 1, height if down else width, dtype=np.float32)
        ramp = ramp[:, None, None] if down else ramp[None, :, None]
        image = np.broadcast_to(a + ramp * (b - a), (height, width, 3)).copy()
        return image, f"on a background from {first} {'at the top' if down else 'on the left'} to {second}"
    image = np.broadcast_to(a, (height, width, 3)).copy()
    if lot < 0.40 and world.clipart:
        art = world.clipart[rng.integers(len(world.clipart))]
        rgba = cut(np.asarray(art.pixels))
        scale = max(width / rgba.shape[1], height / rgba.shape[0])
        size = (max(width, round(rgba.shape[1] * scale)), max(height, round(rgba.shape[0] * scale)))
        large = np.asarray(Image.fromarray(rgba).resize(size, Image.Resampling.BILINEAR))
        x, y = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        large = large[y : y + height, x : x + width]
        alpha = large[..., 3:].astype(np.float32) / 255.0
        image += alpha * (large[..., :3] - image)
        return (
            0.45 * image + 140.25,
            f"on faded clip art of {art.name}",
        )  # 55 % white, so that the objects stand out
    return image, f"on {noun(f'{first} background')}"


def arrange(
    count: int, width: int, height: int, rng: np.random.Generator, shapes: list[np.ndarray]
) -> tuple[list[Cell], list[int], str, tuple[tuple[int, str, int], ...]]:
    """Cells (x0, y0, x1, y1) for the objects, the order of painting, the phrase and its relations."""
    across = bool(rng.random() < 0.5 + 0.25 * np.sign(width - height))
    order = list(range(count))
    if count == 1:
        return [shrink((0, 0, width, height), rng)], order, "{}", ()
    if count == 2 and rng.random() < 0.34:
        cells, order, relation = overlap((0, 0, width, height), rng, shapes)
        return cells, order, f"{{}} {relation} {{}}", ((0, relation, 1),)
    page = (0.0, 0.0, float(width), float(height))
    relation = "left of" if across else "above"
    if count == 2:
        cells = split(page, across, rng, 2)
        if rng.random() < 0.5:
            cells, relation = cells[::-1], OPPOSITE[relation]
        return [shrink(c, rng) for c in cells], order, f"{{}} {relation} {{}}", ((0, relation, 1),)
    lot = rng.random()
    if lot < 0.2:
        cells = [shrink(c, rng) for c in split(page, across, rng, 3)]
        ends = "left to right" if across else "top to bottom"
        return cells, order, f"{{}}, {{}} and {{}} from {ends}", ((0, relation, 1), (1, relation, 2))
    if lot < 0.6:
        rows = split(page, False, rng, 2)
        third = "below" if rng.random() < 0.5 else "above"
        pair, rest = rows if third == "below" else rows[::-1]
        cells = [shrink(c, rng) for c in (*split(pair, True, rng, 2), rest)]
        relations = ((0, "left of", 1), (2, third, 0), (2, third, 1))
        return cells, order, f"{{}} left of {{}}, and {{}} {third} both", relations
    halves = split(page, across, rng, 2)
    side = relation if rng.random() < 0.5 else OPPOSITE[relation]
    rest, pair = halves if side == relation else halves[::-1]
    cells, order, depth = overlap(pair, rng, shapes[:2])
    relations = ((0, depth, 1), (2, side, 0), (2, side, 1))
    return [*cells, shrink(rest, rng)], [*order, 2], f"{{}} {depth} {{}}, and {{}} {side} both", relations


def split(cell: Cell, across: bool, rng: np.random.Generator, parts: int) -> list[Cell]:
    """Cells side by side or one below another, of nearly equal size."""
    x0, y0, x1, y1 = cell
    marks = np.arange(parts + 1) / parts
    marks[1:-1] += rng.uniform(-0.08, 0.08, parts - 1) * 2 / parts
    if across:
        return [(x0 + a * (x1 - x0), y0, x0 + b * (x1 - x0), y1) for a, b in pairwise(marks)]
    return [(x0, y0 + a * (y1 - y0), x1, y0 + b * (y1 - y0)) for a, b in pairwise(marks)]


def shrink(cell: Cell, rng: np.random.Generator) -> Cell:
    """A square-ish box inside the cell at a random place; the cell's own edges stay free by one pixel."""
    x0, y0, x1, y1 = np.ceil(cell[0]) + 1, np.ceil(cell[1]) + 1, np.floor(cell[2]) - 1, np.floor(cell[3]) - 1
    side = rng.uniform(0.82, 1.0) * min(x1 - x0, y1 - y0)
    x, y = x0 + rng.random() * (x1 - x0 - side), y0 + rng.random() * (y1 - y0 - side)
    return float(x), float(y), float(x + side), float(y + side)


def overlap(
    cell: Cell, rng: np.random.Generator, shapes: list[np.ndarray]
) -> tuple[list[Cell], list[int], str]:
    """Two cells of which the front drawing hides about 8 to 50 % of the back one's pixels.

    Returns the cells, the order of painting and the relation of the first object to the second.
    """
    x0, y0, w, h = int(cell[0]) + 1, int(cell[1]) + 1, int(cell[2] - cell[0]) - 2, int(cell[3] - cell[1]) - 2
    relation, order = ("in front of", [1, 0]) if rng.random() < 0.5 else ("behind", [0, 1])
    least = min(w, h)
    scales = rng.uniform(0.68, 0.85), rng.uniform(0.48, 0.62)
    back, front = (
        fit(shapes[i], s * least, s * least)[..., 3] >= 128 for i, s in zip(order, scales, strict=True)
    )
    bx, by = (int(rng.integers(room - n + 1)) for room, n in ((w, back.shape[1]), (h, back.shape[0])))
    page = np.zeros((h, w), bool)
    page[by : by + back.shape[0], bx : bx + back.shape[1]] = back
    spots = np.argwhere(page)  # the front one is centred on one of them, so that it hides something
    best, place = 2.0, (0, 0)
    for _ in range(16):
        cy, cx = spots[rng.integers(len(spots))]
        fx = int(np.clip(cx - front.shape[1] // 2, 0, w - front.shape[1]))
        fy = int(np.clip(cy - front.shape[0] // 2, 0, h - front.shape[0]))
        hidden = (page[fy : fy + front.shape[0], fx : fx + front.shape[1]] & front).sum() / len(spots)
        miss = max(0.08 - hidden, hidden - 0.5, 0.0) + (hidden < 0.02)
        if miss < best:
            best, place = miss, (fx, fy)
        if miss == 0:
            break
    cells: list[Cell] = [cell, cell]
    for i, (x, y), mask in ((order[0], (bx, by), back), (order[1], place, front)):
        cells[i] = (x0 + x, y0 + y, x0 + x + mask.shape[1], y0 + y + mask.shape[0])
    return cells, order, relation
