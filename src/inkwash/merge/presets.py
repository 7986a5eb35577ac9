"""Block weights that merge tools know by name: BASE, IN00 to IN11, M00, OUT00 to OUT11.

Most are a curve over the 25 blocks of the U-Net, and here they are that curve. x: a block's place, 0 at IN00, 1 at OUT11.
"""

from collections.abc import Callable, Mapping
from math import cos, pi

NUM = 25  # blocks of SD1's U-Net
SLOPE = 25 / 6  # of Hermite's curves at both ends
Curve = Callable[[float], float]


def sampled(curve: Curve) -> tuple[float, ...]:
    return (0.0, *(curve(i / (NUM - 1)) for i in range(NUM)))


def fold(value: float) -> float:
    """To and fro between 0 and 1."""
    within = value % 2
    return min(within, 2 - within)


def smoothstep(x: float) -> float:
    return x * x * (3 - 2 * x)


def fake_hermite(x: float) -> float:
    return smoothstep(x) + SLOPE * x * (1 - x) * (1 - 2 * x)


def true_hermite(x: float) -> float:
    return fake_hermite(x) + (1 - smoothstep(x)) / (NUM - 1) if x else 0.0


def blocks(*spans: tuple[int, int, float]) -> tuple[float, ...]:
    """Weights of the blocks from the first to the last of each span, both counted from IN00 as 0; the others have 0."""
    return (
        0.0,
        *(next((weight for first, last, weight in spans if first <= i <= last), 0.0) for i in range(NUM)),
    )


def wrap(num: int) -> tuple[float, ...]:
    """The outermost `num` blocks."""
    return blocks((0, num // 2 - 1, 1), (NUM - num // 2, NUM - 1, 1))


def ring(first: int, *weights: float) -> tuple[float, ...]:
    """These weights from the block `first` on, and mirrored on the way up."""
    down = [(first + i, first + i, weight) for i, weight in enumerate(weights)]
    return blocks(*down, *((NUM - 1 - i, NUM - 1 - i, weight) for i, _, weight in down))


RISING: Mapping[str, Curve] = {
    "SMOOTHSTEP": smoothstep,
    **{f"SMOOTHSTEP*{n}": lambda x, n=n: fold(n * smoothstep(x)) for n in (2, 3, 4)},
    **{f"SMOOTHSTEP/{n}": lambda x, n=n: smoothstep(fold(n * x)) for n in (2, 3, 4)},
    "REVERSE_COSINE": lambda x: (1 - cos(pi * x)) / 2,
    "TRUE_CUBIC_HERMITE": true_hermite,
    "FAKE_CUBIC_HERMITE": fake_hermite,
}
REVERSED = {
    "SMOOTHSTEP": "REVERSE-SMOOTHSTEP",
    **{f"SMOOTHSTEP{op}{n}": f"R_SMOOTHSTEP{op}{n}" for op in "*/" for n in (2, 3, 4)},
    "REVERSE_COSINE": "COSINE",
    "TRUE_CUBIC_HERMITE": "TRUE_REVERSE_CUBIC_HERMITE",
    "FAKE_CUBIC_HERMITE": "FAKE_REVERSE_CUBIC_HERMITE",
}
PRESETS: Mapping[str, tuple[float, ...]] = {
    "GRAD_V": sampled(lambda x: abs(1 - 2 * x)),
    "GRAD_A": sampled(lambda x: fold(2 * x)),
    "FLAT_25": blocks((0, 24, 0.25)),
    "FLAT_75": blocks((0, 24, 0.75)),
    **{f"WRAP{num:02}": wrap(num) for num in (8, 12, 14, 16)},
    "MID12_50": blocks((5, 18, 0.5)),
    "OUT07": blocks((18, 24, 1)),
    "OUT12": blocks((13, 24, 1)),
    "OUT12_5": blocks((12, 12, 0.5), (13, 24, 1)),
    "RING08_SOFT": ring(5, 0.5, 1, 1, 1, 0.5),
    "RING08_5": ring(6, 1, 1, 1, 1),
    "RING10_5": ring(5, 1, 1, 1, 1, 1),
    "RING10_3": ring(6, 1, 1, 1, 1, 1),
    **{name: sampled(curve) for name, curve in RISING.items()},
    **{REVERSED[name]: sampled(lambda x, curve=curve: 1 - curve(x)) for name, curve in RISING.items()},
    "ALL_A": (0.0,) * (NUM + 1),
    "ALL_B": (1.0,) * (NUM + 1),
}
