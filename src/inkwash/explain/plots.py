"""Plots of measured values and of noise schedules, as drawings."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.explain.drawing import GREY, GRID, INK, SEAL, TEXT, Drawing

SMALL, WIDE = (460, 300), (900, 480)
MARGINS = (62, 16, 18, 48)  # left, above, right, below, in pixels
INSET = 24  # pixels beside the first and the last dot of a schedule


@dataclass(frozen=True)
class Point:
    """A place on a plot, with its name and the ends of its interval upwards."""

    x: float
    y: float
    label: str = ""
    low: float | None = None
    high: float | None = None


def round_step(least: float) -> float:
    """The first of 1, 2 and 5 times the powers of ten that is not below `least`, up to rounding."""
    power = 10.0 ** floor(log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * 0.999)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    step = round_step((high - low) / 5 or 1.0)
    return [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def linear_ticks(num: int) -> list[int]:
    """About five round numbers from 0 to num - 1, and num - 1 itself."""
    step = round(round_step(max(num / 5, 1)))
    return [tick for tick in range(0, num - 1, step) if num - 1 - tick > step / 3] + [num - 1]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `low` to `high`; over four decades and more, the powers."""
    wide = log10(high / low) > 4
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    found = [m * 10.0**k for k in powers for m in ((1,) if wide else (1, 2, 5))]
    return [tick for tick in found if low <= tick <= high]


def span(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of values, a little widened."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


class Frame(Drawing):
    """Axes, and where a value lies between them.

    x_ticks: where there are numbers; None: round ones. log: whether y is on a logarithmic axis. text: pixels of the numbers.
    """

    def __init__(
        self,
        xs: tuple[float, float],
        ys: tuple[float, float],
        *,
        size: tuple[int, int] = SMALL,
        margins: tuple[int, int, int, int] = MARGINS,
        x_ticks: Iterable[float] | None = None,
        log: bool = False,
        text: float = TEXT,
    ):
        super().__init__(size)
        self.xs, self.ys, self.log = xs, ys, log
        self.left, self.top = margins[:2]
        self.right, self.bottom = size[0] - margins[2], size[1] - margins[3]
        for tick in log_ticks(*ys) if log else ticks(*ys):
            y = self.y(tick)
            self.line([(self.left, y), (self.right, y)], GRID, 1)
            self.text(self.left - 8, y + 4, f"{tick:.6g}", "end", size=text)
        for tick in ticks(*xs) if x_ticks is None else x_ticks:
            self.text(self.x(tick), self.bottom + 6 + text, f"{tick:.6g}", "middle", size=text)
        self.line([(self.left, self.bottom), (self.right, self.bottom)], GREY, 1)

    def x(self, value: float) -> float:
        low, high = self.xs
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high, value = (log10(v) for v in (*self.ys, value)) if self.log else (*self.ys, value)
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of two values."""
        return self.x(x), self.y(y)

    def name(self, x: str, y: str) -> None:
        """Write the names of the axes beside them."""
        self.text((self.left + self.right) / 2, self.size[1] - 10, x, "middle", INK)
        self.text(14, (self.top + self.bottom) / 2, y, "middle", INK, turned=True)


def scatter(points: Sequence[Point], x_name: str, y_name: str) -> Drawing:
    """Points joined in their order, with their intervals and names."""
    ends = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
    frame = Frame(span([p.x for p in points]), span(ends))
    frame.name(x_name, y_name)
    frame.line([frame.place(p.x, p.y) for p in points])
    for p in points:
        x, y = frame.place(p.x, p.y)
        if p.low is not None and p.high is not None:
            frame.line([(x, frame.y(p.low)), (x, frame.y(p.high))], SEAL, 1)
        frame.dot(x, y)
        frame.text(x + 7, y - 6, p.label, colour=INK)
    return frame


def histogram(values: Sequence[float], name: str, bins: int = 32) -> Drawing:
    """A histogram of values."""
    counts, edges = np.histogram(values, bins)
    frame = Frame((float(edges[0]), float(edges[-1])), (0, float(counts.max()) * 1.05))
    frame.name(name, "pictures")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = frame.place(float(left), float(count))
        frame.bar(x, y, max(frame.x(float(right)) - x - 1, 0.5), frame.y(0) - y, GREY)
    return frame


def bars(values: Mapping[str, float], name: str) -> Drawing:
    """A value for each of some names, from 0 on."""
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin if low else 0.0, high + margin)
    frame = Frame((-0.6, len(values) - 0.4), ends, x_ticks=())
    frame.name("", name)
    width = 0.7 * (frame.x(1) - frame.x(0))
    for place, (key, value) in enumerate(values.items()):
        x, top, bottom = frame.x(place), frame.y(max(value, 0)), frame.y(min(value, 0))
        frame.bar(x - width / 2, top, width, max(bottom - top, 0.5), SEAL)
        frame.text(x + 4, frame.bottom + 6, key, "end", turned=True)
    return frame


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x_name: str, title: str) -> Drawing:
    """One or two curves, each of two points or more, with their names."""
    values = [y for points in lines.values() for _, y in points]
    low, high = min(values), max(values)
    last = max(points[-1][0] for points in lines.values())
    ys = (low, high if high > low else low + 1)
    frame = Frame((0, last), ys, size=WIDE, margins=(84, 48, 24, 56), text=13)
    for k, (name, points) in enumerate(lines.items()):
        colour = (INK, SEAL)[k]
        frame.line([frame.place(*point) for point in points], colour, 2)
        frame.text(frame.right, 26 + 16 * k, name, "end", colour, 14)
    frame.text(frame.left, 28, title, colour=INK, size=15)
    frame.text((frame.left + frame.right) / 2, WIDE[1] - 12, x_name, "middle", INK, 14)
    return frame


def schedule_plot(
    schedule: NoiseSchedule, sigmas: Tensor, marked: Collection[int] = (), size: tuple[int, int] = (960, 400)
) -> Drawing:
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
    ends = float(min(curve[0], visited[-1]) / 1.3), float(max(curve[-1], visited[0]) * 1.5)
    margins, num = (74, 62, 28, 62), len(alphas_cumprod)
    beside = (num - 1) * INSET / (size[0] - margins[0] - margins[2] - 2 * INSET)
    frame = Frame(
        (-beside, num - 1 + beside), ends,
        size=size, margins=margins, x_ticks=linear_ticks(num), log=True, text=13,
    )  # fmt: skip
    for tick in linear_ticks(num):
        frame.line([(frame.x(tick), frame.bottom), (frame.x(tick), frame.bottom + 5)], GREY, 1)
    frame.line([frame.place(*point) for point in zip(t.tolist(), curve.tolist(), strict=True)], GREY, 2)
    places = [frame.place(*point) for point in zip(dots_t.tolist(), visited.tolist(), strict=True)]
    for i in sorted(range(len(places)), key=lambda i: i in marked):  # the filled ones above
        frame.dot(*places[i], 5 if i in marked else 3.5, hollow=i not in marked)
    number_dots(frame, {i: places[i] for i in sorted(marked)})
    frame.line([(frame.left, 42), (frame.left + 28, 42)], GREY, 2)
    frame.text(frame.left + 36, 46, "the training's schedule", size=13)
    frame.dot(frame.left + 220, 42, 3.5, hollow=True)
    if marked:
        frame.dot(frame.left + 240, 42, 5)
    what = f"the sampler's {len(visited)} steps, from right to left, and at last 0"
    frame.text(frame.left + (256 if marked else 234), 46, what, size=13)
    frame.text(28, 24, "noise level sigma", colour=INK, size=15)
    frame.text((frame.left + frame.right) / 2, size[1] - 14, "training time t", "middle", INK, 15)
    return frame


def number_dots(frame: Drawing, places: Mapping[int, tuple[float, float]]) -> None:
    """Write the numbers of dots, from 1, where there is room."""
    numbered: list[tuple[float, float]] = []
    for i, (x, y) in places.items():
        if all(abs(x - a) > 20 or abs(y - b) > 13 for a, b in numbered):
            # on the side that the curve leaves free
            frame.text(x - 6, y - 7, str(i + 1), "end", SEAL, 13)
            numbered.append((x, y))
