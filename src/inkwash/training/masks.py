"""Random masks for inpainting: bool (S, S), true where to draw. S picture side."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(rng: torch.Generator, num: int, low: float = 0.0, high: float = 1.0) -> list[float]:
    return (torch.rand(num, generator=rng) * (high - low) + low).tolist()


def one_of(rng: torch.Generator, num: int) -> int:
    return int(torch.randint(num, (), generator=rng))


def places(side: int) -> tuple[Tensor, Tensor]:
    """x (1, S) and y (S, 1) of the pixels' centres."""
    centres = torch.arange(side) + 0.5
    return centres[None], centres[:, None]


def boxed(box: Sequence[float], side: int) -> Tensor:
    """A box x0, y0, x1, y1 in pixels."""
    x, y = places(side)
    return (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])


def around(box: Sequence[int], side: int, rng: torch.Generator, margin: float = 12.0) -> Tensor:
    """A box and up to `margin` pixels at each of its sides."""
    left, top, right, bottom = uniform(rng, 4, 0.0, margin)
    return boxed((box[0] - left, box[1] - top, box[2] + right, box[3] + bottom), side)


def boxes(side: int, rng: torch.Generator) -> Tensor:
    """One to three boxes, anywhere, of a fifth to three fifths of the side."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    for _ in range(1 + one_of(rng, 3)):
        width, height = uniform(rng, 2, 0.2 * side, 0.6 * side)
        x, y = uniform(rng, 2, -0.1 * side, 0.9 * side)
        mask |= boxed((x, y, x + width, y + height), side)
    return mask


def strokes(side: int, rng: torch.Generator) -> Tensor:
    """A brush's path of one to five straight lines, a tenth to a third of the side wide."""
    x, y = places(side)
    mask = torch.zeros(side, side, dtype=torch.bool)
    (radius,) = uniform(rng, 1, 0.05 * side, 0.16 * side)
    at = uniform(rng, 2, 0.1 * side, 0.9 * side)
    for _ in range(1 + one_of(rng, 5)):
        to = uniform(rng, 2, 0.0, side)
        dx, dy = to[0] - at[0], to[1] - at[1]
        along = ((x - at[0]) * dx + (y - at[1]) * dy) / max(dx * dx + dy * dy, 1e-6)
        along = along.clamp(0, 1)
        mask |= (x - at[0] - along * dx).square() + (y - at[1] - along * dy).square() < radius**2
        at = to
    return mask


def half_plane(side: int, rng: torch.Generator) -> Tensor:
    """All on one side of a line through the middle region."""
    x, y = places(side)
    (angle,) = uniform(rng, 1, 0.0, 2 * math.pi)
    px, py = uniform(rng, 2, 0.25 * side, 0.75 * side)
    return (x - px) * math.cos(angle) + (y - py) * math.sin(angle) > 0


def whole(side: int, rng: torch.Generator) -> Tensor:
    return torch.ones(side, side, dtype=torch.bool)


SHAPES = (boxes, strokes, half_plane, whole)


def anywhere(side: int, rng: torch.Generator) -> Tensor:
    """A mask of one of these shapes."""
    return SHAPES[one_of(rng, len(SHAPES))](side, rng)
