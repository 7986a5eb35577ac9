"""Plots, drawn with Pillow alone."""

from bisect import bisect_right
from collections.abc import Collection
from math import ceil, floor, log10

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule

PAPER, INK, GREY, GRID, SEAL = "#fbfaf7", "#26282c", "#7a7d84", "#e7e4dc", "#c2402a"
SHARP = 3  # shapes are drawn this many times larger and then reduced, which smooths them


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


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

    low, high = min(curve[0], visited[-1]) / 1.3, max(curve[-1], visited[0]) * 1.5
    left, top, right, bottom = 74, 62, size[0] - 28, size[1] - 62
    inset = 24  # so that the first and the last dot stand free

    def place(t: float, sigma: float) -> tuple[float, float]:
        x = left + inset + (right - left - 2 * inset) * t / (len(alphas_cumprod) - 1)
        return x, bottom - (bottom - top) * (log10(sigma) - log10(low)) / (log10(high) - log10(low))

    large = Image.new("RGB", (size[0] * SHARP, size[1] * SHARP), PAPER)
    shapes = ImageDraw.Draw(large)

    def line(points: list[tuple[float, float]], fill: str, width: float) -> None:
        shapes.line([(x * SHARP, y * SHARP) for x, y in points], fill, round(width * SHARP), joint="curve")

    def dot(x: float, y: float, radius: float, filled: bool) -> None:
        shapes.circle((x * SHARP, y * SHARP), radius * SHARP, SEAL if filled else PAPER, SEAL, 2 * SHARP)

    t_ticks = linear_ticks(len(alphas_cumprod))
    sigma_ticks = log_ticks(low, high)
    for tick in sigma_ticks:
        y = place(0, tick)[1]
        line([(left, y), (right, y)], GRID, 1)
    for tick in t_ticks:
        x = place(tick, low)[0]
        line([(x, bottom), (x, bottom + 5)], GREY, 1)
    line([(left, bottom), (right, bottom)], GREY, 1)
    line([place(*point) for point in zip(t.tolist(), curve.tolist(), strict=True)], GREY, 2)
    for i, point in enumerate(zip(dots_t, visited, strict=True)):
        if i not in marked:
            dot(*place(*point), 3.5, filled=False)
    for i in sorted(marked):
        dot(*place(dots_t[i], visited[i]), 5, filled=True)
    line([(left, 42), (left + 28, 42)], GREY, 2)
    dot(left + 220, 42, 3.5, filled=False)
    if marked:
        dot(left + 240, 42, 5, filled=True)

    image = large.resize(size, Image.Resampling.BOX)
    text = ImageDraw.Draw(image)
    small = font(13)
    for tick in sigma_ticks:
        text.text((left - 10, place(0, tick)[1]), f"{tick:g}", GREY, small, anchor="rm")
    for tick in t_ticks:
        text.text((place(tick, low)[0], bottom + 9), str(tick), GREY, small, anchor="ma")
    numbered: list[tuple[float, float]] = []
    for i in sorted(marked):
        x, y = place(dots_t[i], visited[i])
        if all(abs(x - a) > 20 or abs(y - b) > 13 for a, b in numbered):  # where there is room
            text.text(
                (x - 6, y - 7), str(i + 1), SEAL, small, anchor="rs"
            )  # the side that the curve leaves free
            numbered.append((x, y))
    text.text((28, 10), "noise level sigma", INK, font(15))
    text.text((left + 36, 42), "the training's schedule", GREY, small, anchor="lm")
    what = f"the sampler's {len(visited)} steps, from right to left, and at last 0"
    text.text((left + (256 if marked else 234), 42), what, GREY, small, anchor="lm")
    text.text(((left + right) / 2, size[1] - 14), "training time t", INK, font(15), anchor="ms")
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
