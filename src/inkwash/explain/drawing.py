"""Drawings of lines, bars, dots and texts, which become SVG or a picture; the colours and the font of all plots and sheets.

Places are in pixels from the upper left corner; texts stand on theirs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, ImageDraw, ImageFont

from inkwash.files import atomic, write_text

PAPER, INK, GREY, GRID, SEAL = "#fbfaf7", "#26282c", "#7a7d84", "#e7e4dc", "#c2402a"
SHARP = 3  # shapes are drawn this many times larger and then reduced, which smooths them
TEXT = 12  # pixels of a text
Place = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


class Shape(Protocol):
    """A part of a drawing that is no text."""

    def svg(self) -> str: ...

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        """Draw it SHARP times larger."""
        ...


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: Sequence[Place]
    colour: str
    width: float

    def svg(self) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="{self.colour}" stroke-width="{self.width:g}"/>'
        )

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        """Draw it SHARP times larger."""
        points = [(x * SHARP, y * SHARP) for x, y in self.points]
        on.line(points, self.colour, max(1, round(self.width * SHARP)), joint="curve")


@dataclass(frozen=True)
class Bar:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str

    def svg(self) -> str:
        size = f'width="{self.width:.1f}" height="{self.height:.1f}"'
        return f'<rect x="{self.x:.1f}" y="{self.y:.1f}" {size} fill="{self.colour}"/>'

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        """Draw it SHARP times larger."""
        ends = (self.x, self.y, self.x + self.width, self.y + self.height)
        on.rectangle(tuple(round(end * SHARP) for end in ends), self.colour)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Dot:
    """A disc; hollow: a ring, which hides what is below it."""

    x: float
    y: float
    radius: float
    colour: str
    hollow: bool

    def svg(self) -> str:
        fill = (
            f'fill="{PAPER}" stroke="{self.colour}" stroke-width="2"'
            if self.hollow
            else f'fill="{self.colour}"'
        )
        return f'<circle cx="{self.x:.1f}" cy="{self.y:.1f}" r="{self.radius:g}" {fill}/>'

    def draw(self, on: ImageDraw.ImageDraw) -> None:
        """Draw it SHARP times larger."""
        fill = PAPER if self.hollow else self.colour
        on.circle((self.x * SHARP, self.y * SHARP), self.radius * SHARP, fill, self.colour, 2 * SHARP)


@dataclass(frozen=True)
class Text:
    """A line of text, above its place; turned: left of its place, to be read upwards."""

    x: float
    y: float
    text: str
    anchor: Anchor
    colour: str
    size: float
    turned: bool

    def svg(self) -> str:
        more = f' transform="rotate(-90 {self.x:.1f} {self.y:.1f})"' if self.turned else ""
        more += f' font-size="{self.size:g}"' if self.size != TEXT else ""
        place = f'x="{self.x:.1f}" y="{self.y:.1f}" text-anchor="{self.anchor}"'
        return f'<text {place} fill="{self.colour}"{more}>{escape(self.text)}</text>'

    def draw(self, on: Image.Image) -> None:
        """Draw it onto a picture."""
        letters = font(self.size)
        if not self.turned:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[self.anchor]
            ImageDraw.Draw(on).text((self.x, self.y), self.text, self.colour, letters, anchor=anchor)
            return
        width = round(ImageDraw.Draw(on).textlength(self.text, letters)) + 2
        above, below = round(self.size), round(self.size / 2)
        mask = Image.new("L", (width, above + below))
        ImageDraw.Draw(mask).text((0, above), self.text, 255, letters, anchor="ls")
        mask = mask.transpose(Image.Transpose.ROTATE_90)
        before = {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]  # of its length
        on.paste(self.colour, (round(self.x) - above, round(self.y + before) - width), mask)


class Drawing:
    """Shapes, and texts above them."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.shapes: list[Shape] = []
        self.texts: list[Text] = []

    def line(self, points: Sequence[Place], colour: str = GREY, width: float = 1.5) -> None:
        self.shapes.append(Line(points, colour, width))

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.shapes.append(Bar(x, y, width, height, colour))

    def dot(self, x: float, y: float, radius: float = 4, colour: str = SEAL, hollow: bool = False) -> None:
        self.shapes.append(Dot(x, y, radius, colour, hollow))

    def text(
        self, x: float, y: float, text: str, anchor: Anchor = "start", colour: str = GREY,
        size: float = TEXT, turned: bool = False,
    ) -> None:  # fmt: skip
        self.texts.append(Text(x, y, text, anchor, colour, size, turned))

    def svg(self) -> str:
        """The drawing as an element for a page of HTML."""
        width, height = self.size
        opening = (
            f'<svg viewBox="0 0 {width} {height}" font-size="{TEXT}" font-family="sans-serif" role="img">'
        )
        paper = Bar(0, 0, width, height, PAPER)
        return "".join([opening, *(part.svg() for part in (paper, *self.shapes, *self.texts)), "</svg>"])

    def image(self) -> Image.Image:
        """The drawing as a picture of its size."""
        width, height = self.size
        large = Image.new("RGB", (width * SHARP, height * SHARP), PAPER)
        on = ImageDraw.Draw(large)
        for shape in self.shapes:
            shape.draw(on)
        image = large.resize(self.size, Image.Resampling.BOX)
        for text in self.texts:
            text.draw(image)
        return image


def in_rows(drawings: Sequence[Drawing], across: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """The size of a sheet of drawings of one size, `across` of them in a row, and the corner of each."""
    width, height = drawings[0].size
    corners = [(k % across * width, k // across * height) for k in range(len(drawings))]
    return (width * min(across, len(drawings)), height * -(-len(drawings) // across)), corners


def as_svg(drawings: Sequence[Drawing], across: int = 1) -> str:
    """A file of drawings of one size, `across` of them in a row."""
    (width, height), corners = in_rows(drawings, across)
    one = 'width="{}" height="{}"'.format(*drawings[0].size)
    placed = (
        each.svg().replace("<svg ", f'<svg x="{x}" y="{y}" {one} ', 1)
        for each, (x, y) in zip(drawings, corners, strict=True)
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *placed, "</svg>\n"])


def write_plots(drawings: Sequence[Drawing], path: Path, across: int = 1) -> None:
    """Write drawings of one size, `across` of them in a row, as SVG or, where `path` ends in .png, as PNG."""
    if path.suffix.lower() != ".png":
        write_text(path, as_svg(drawings, across))
        return
    size, corners = in_rows(drawings, across)
    image = Image.new("RGB", size, PAPER)
    for each, corner in zip(drawings, corners, strict=True):
        image.paste(each.image(), corner)
    with atomic(path) as partial:
        image.save(partial, "PNG")


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all plots and sheets, in pixels."""
    return ImageFont.load_default(size=size)


def fitting(draw: ImageDraw.ImageDraw, text: str, size: float, width: float) -> str:
    """`text`, cut so that it is at most `width` pixels wide."""
    text = text[:1000]  # wider than any picture
    if draw.textlength(text, font(size)) <= width:
        return text
    fits = bisect_right(range(len(text)), width, key=lambda n: draw.textlength(f"{text[:n]}...", font(size)))
    return f"{text[: fits - 1]}..."


def wrapped(text: str, size: float, width: float, lines: int) -> list[str]:
    """`text` in lines of at most `width` pixels, at most so many of them; the last one is cut if need be."""
    draw = ImageDraw.Draw(Image.new("1", (1, 1)))
    made = [""]
    for word in text.split():
        longer = f"{made[-1]} {word}".strip()
        if not made[-1] or len(made) == lines or draw.textlength(longer, font(size)) <= width:
            made[-1] = longer
        else:
            made.append(word)
    return [fitting(draw, line, size, width) for line in made]
