"""Plots as SVG text, for pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np

from inkwash.explain.plot import GREY, GRID, INK, PAPER, SEAL

WIDTH, HEIGHT = 460, 300
LEFT, TOP, RIGHT, BOTTOM = 62, 16, 18, 48


@dataclass(frozen=True)
class Point:
    """A place on a plot, with its name and the ends of its interval upwards."""

    x: float
    y: float
    label: str = ""
    low: float | None = None
    high: float | None = None


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of values, a little widened."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


class Frame:
    """Axes, and where a value lies between them. names: of the places 0, 1 ... along x, in the place of numbers."""

    def __init__(
        self,
        xs: tuple[float, float],
        ys: tuple[float, float],
        x_name: str,
        y_name: str,
        names: Sequence[str] = (),
    ):
        self.xs, self.ys = xs, ys
        self.parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>']
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for tick in ticks(*ys):
            y = self.y(tick)
            self.parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{GRID}"/>')
            self.text(LEFT - 8, y + 4, f"{tick:.6g}", "end")
        for tick in () if names else ticks(*xs):
            self.text(self.x(tick), bottom + 18, f"{tick:.6g}", "middle")
        for place, name in enumerate(names):
            x = self.x(place) + 4
            self.text(x, bottom + 6, name, "end", GREY, f'transform="rotate(-90 {x:.1f} {bottom + 6})"')
        self.parts.append(f'<path d="M{LEFT} {bottom}H{right}" stroke="{GREY}"/>')
        self.text((LEFT + right) / 2, HEIGHT - 10, x_name, "middle", INK)
        turned = f'transform="rotate(-90 14 {(TOP + bottom) / 2})"'
        self.text(14, (TOP + bottom) / 2, y_name, "middle", INK, turned)

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.ys
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def text(self, x: float, y: float, text: str, anchor: str, colour: str = GREY, more: str = "") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {more}>{escape(text)}</text>'
        )

    def svg(self) -> str:
        opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" font-family="sans-serif" role="img">'
        return "".join([opening, *self.parts, "</svg>"])


def scatter(points: Sequence[Point], x_name: str, y_name: str) -> str:
    """Points joined in their order, with their intervals and names."""
    ends = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
    frame = Frame(span([p.x for p in points]), span(ends), x_name, y_name)
    path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in points)
    frame.parts.append(f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="1.5"/>')
    for p in points:
        x, y = frame.x(p.x), frame.y(p.y)
        if p.low is not None and p.high is not None:
            frame.parts.append(
                f'<path d="M{x:.1f} {frame.y(p.low):.1f}V{frame.y(p.high):.1f}" stroke="{SEAL}"/>'
            )
        frame.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{SEAL}"/>')
        frame.text(x + 7, y - 6, p.label, "start", INK)
    return frame.svg()


def histogram(values: Sequence[float], name: str, bins: int = 32) -> str:
    """How often values are how large."""
    counts, edges = np.histogram(values, bins)
    frame = Frame((float(edges[0]), float(edges[-1])), (0, float(counts.max()) * 1.05), name, "pictures")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = frame.x(float(left)), frame.y(float(count))
        width, height = max(frame.x(float(right)) - x - 1, 0.5), frame.y(0) - y
        frame.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{GREY}"/>'
        )
    return frame.svg()


def bars(values: Mapping[str, float], name: str) -> str:
    """A value for each of some names, from 0 on."""
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin if low else 0.0, high + margin)
    frame = Frame((-0.6, len(values) - 0.4), ends, "", name, tuple(values))
    width = 0.7 * (frame.x(1) - frame.x(0))
    for place, value in enumerate(values.values()):
        top, bottom = frame.y(max(value, 0)), frame.y(min(value, 0))
        frame.parts.append(
            f'<rect x="{frame.x(place) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{max(bottom - top, 0.5):.1f}" fill="{SEAL}"/>'
        )
    return frame.svg()


def below_one_another(plots: Sequence[str]) -> str:
    """One SVG file of several plots."""
    size = f'width="{WIDTH}" height="{HEIGHT * len(plots)}" viewBox="0 0 {WIDTH} {HEIGHT * len(plots)}"'
    placed = (
        each.replace("<svg ", f'<svg y="{HEIGHT * place}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for place, each in enumerate(plots)
    )
    return "".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *placed, "</svg>"])
