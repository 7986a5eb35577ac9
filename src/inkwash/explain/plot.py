"""Plots, drawn with Pillow alone."""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from math import ceil, floor, log10

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule

PAPER, INK, GREY, GRID, SEAL = "#fbfaf7", "#26282c", "#7a7d84", "#e7e4dc", "#c2402a"
SHARP = 3  # shapes are drawn this many times larger and then reduced, which smooths them


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all plots and sheets, in pixels."""
    return ImageFont.load_default(size=size)


class Axes:
    """A plot of sigma, on a log axis, over t: shapes first, then, once they are smooth, texts.

    num: of timesteps; ends: the lowest and highest sigma; size: (width, height) in pixels.
    """

    def __init__(self, num: int, ends: tuple[float, float], size: tuple[int, int]):
        self.num, self.ends, self.size = num, ends, size
        self.left, self.top, self.right, self.bottom = 74, 62, size[0] - 28, size[1] - 62
        self.large = Image.new("RGB", (size[0] * SHARP, size[1] * SHARP), PAPER)
        self.shapes = ImageDraw.Draw(self.large)

    def place(self, t: float, sigma: float) -> tuple[float, float]:
        """The pixel of a level."""
        inset = 24  # so that the first and the last dot stand free
        x = self.left + inset + (self.right - self.left - 2 * inset) * t / (self.num - 1)
        low, high = map(log10, self.ends)
        return x, self.bottom - (self.bottom - self.top) * (log10(sigma) - low) / (high - low)

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float) -> None:
        scaled = [(x * SHARP, y * SHARP) for x, y in points]
        self.shapes.line(scaled, fill, round(width * SHARP), joint="curve")

    def dot(self, x: float, y: float, radius: float, filled: bool) -> None:
        fill = SEAL if filled else PAPER
        self.shapes.circle((x * SHARP, y * SHARP), radius * SHARP, fill, SEAL, 2 * SHARP)

    def grid(self) -> None:
        """Draw the axis of t, its ticks, and a line for each tick of sigma."""
        for tick in log_ticks(*self.ends):
            y = self.place(0, tick)[1]
            self.line([(self.left, y), (self.right, y)], GRID, 1)
        for tick in linear_ticks(self.num):
            x = self.place(tick, self.ends[0])[0]
            self.line([(x, self.bottom), (x, self.bottom + 5)], GREY, 1)
        self.line([(self.left, self.bottom), (self.right, self.bottom)], GREY, 1)

    def finished(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """The picture with the shapes and the ticks' numbers, and what draws more text."""
        image = self.large.resize(self.size, Image.Resampling.BOX)
        text = ImageDraw.Draw(image)
        for tick in log_ticks(*self.ends):
            text.text((self.left - 10, self.place(0, tick)[1]), f"{tick:g}", GREY, font(13), anchor="rm")
        for tick in linear_ticks(self.num):
            x = self.place(tick, self.ends[0])[0]
            text.text((x, self.bottom + 9), str(tick), GREY, font(13), anchor="ma")
        return image, text


def schedule_plot(
    schedule: NoiseSchedule, sigmas: Tensor, marked: Collection[int] = (), size: tuple[int, int] = (960, 400)
) -> Image.Image:
    """The noise level sigma over training time t, on a log axis, and the levels `sigmas` (n+1,) as dots.

    `size` is (width, height) in pixels. A dot's t is found on the curve, linearly in log sigma. The dots of
    the steps in `marked` (from 0) are filled and numbered (from 1). The last sigma, 0, has no place on a log
    axis.
    """
    alphas_cumprod = schedule.alphas_cumprod.double().cpu().numpy()
    t = np.flatnonzero(alphas_cumprod > 0)  # a schedule that ends in pure noise has no last sigma
    curve = np.sqrt(1 / alphas_cumprod[t] - 1)
    visited = sigmas.double().cpu().numpy()
    visited = visited[visited > 0]
    dots_t = np.interp(np.log(visited), np.log(curve), t)
    ends = min(curve[0], visited[-1]) / 1.3, max(curve[-1], visited[0]) * 1.5
    axes = Axes(len(alphas_cumprod), ends, size)
    axes.grid()
    axes.line([axes.place(*point) for point in zip(t.tolist(), curve.tolist(), strict=True)], GREY, 2)
    for i, point in enumerate(zip(dots_t, visited, strict=True)):
        if i not in marked:
            axes.dot(*axes.place(*point), 3.5, filled=False)
    places = {i: axes.place(dots_t[i], visited[i]) for i in sorted(marked)}
    for place in places.values():
        axes.dot(*place, 5, filled=True)
    key = axes.left, 42
    axes.line([key, (key[0] + 28, key[1])], GREY, 2)
    axes.dot(key[0] + 220, key[1], 3.5, filled=False)
    if marked:
        axes.dot(key[0] + 240, key[1], 5, filled=True)

    image, text = axes.finished()
    numbered: list[tuple[float, float]] = []
    for i, (x, y) in places.items():
        if all(abs(x - a) > 20 or abs(y - b) > 13 for a, b in numbered):  # where there is room
            # on the side that the curve leaves free
            text.text((x - 6, y - 7), str(i + 1), SEAL, font(13), anchor="rs")
            numbered.append((x, y))
    text.text((28, 10), "noise level sigma", INK, font(15))
    text.text((key[0] + 36, key[1]), "the training's schedule", GREY, font(13), anchor="lm")
    what = f"the sampler's {len(visited)} steps, from right to left, and at last 0"
    text.text((key[0] + (256 if marked else 234), key[1]), what, GREY, font(13), anchor="lm")
    text.text(((axes.left + axes.right) / 2, size[1] - 14), "training time t", INK, font(15), anchor="ms")
    return image


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


def linear_ticks(num: int) -> list[int]:
    """About five round numbers from 0 to num - 1, and num - 1 itself."""
    rough = max(num / 5, 1)
    power = 10 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [tick for tick in range(0, num - 1, step) if num - 1 - tick > step / 3] + [num - 1]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `low` to `high`; over four decades and more, the powers."""
    wide = log10(high / low) > 4
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [m * 10.0**k for k in powers for m in ((1,) if wide else (1, 2, 5))]
    return [tick for tick in ticks if low <= tick <= high]
