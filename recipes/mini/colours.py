"""Names of colours, and the turning of a drawing's main colour into another. H W picture size.

Hue in degrees [0, 360), saturation and value in [0, 1], as in Smith 1978 (HSV).
"""

from dataclasses import dataclass

import numpy as np

NAMED = {  # name: (hue, saturation, value), what a drawing is turned to and a background is painted with
    "red": (2.0, 0.85, 0.88),
    "orange": (29.0, 0.88, 0.98),
    "yellow": (51.0, 0.80, 0.99),
    "green": (122.0, 0.62, 0.70),
    "blue": (216.0, 0.75, 0.88),
    "purple": (275.0, 0.62, 0.75),
    "pink": (330.0, 0.48, 0.97),
    "brown": (25.0, 0.65, 0.48),
}
COLOUR_WORDS = frozenset(
    "red orange yellow green blue purple pink brown black white gray grey gold golden silver colored rainbow"
    " violet tangerine cherry bronze beige dark light".split()
)
WINDOW = 45.0  # hues nearer than this to the main one belong to it


@dataclass(frozen=True)
class MainColour:
    """The colour that most of a drawing has: hue, saturation and value, and its name if that is plain."""

    hue: float
    saturation: float
    value: float
    name: str | None


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> float32 (..., 3): hue in degrees, saturation, value."""
    x = rgb.astype(np.float32) / 255.0
    value, low = x.max(-1), x.min(-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    sector = np.where(
        value == r, (g - b) / safe % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    saturation = np.where(value > 0, chroma / np.where(value > 0, value, 1), 0)
    return np.stack([np.where(chroma > 0, sector * 60, 0), saturation, value], -1).astype(np.float32)


def to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Inverse of `to_hsv`: float (..., 3) -> uint8 (..., 3)."""
    hue, saturation, value = hsv[..., 0:1], hsv[..., 1:2], hsv[..., 2:3]
    k = (np.array([5, 3, 1], np.float32) + hue / 60) % 6
    x = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def colour_name(hue: float, saturation: float, value: float) -> str | None:
    """The plain name of a saturated colour, or None where people would not agree on one."""
    if saturation < 0.25 or value < 0.25:
        return None
    if 300 <= hue < 343:
        return "pink" if value > 0.7 else None
    if hue >= 343 or hue <= 13:
        if saturation >= 0.6 and value >= 0.5:
            return "red"
        return "pink" if saturation <= 0.5 and value > 0.85 and not 8 < hue < 180 else None
    if 10 <= hue <= 40 and saturation >= 0.4 and value <= 0.62:
        return "brown"
    if 19 <= hue <= 40 and saturation >= 0.6 and value >= 0.8:
        return "orange"
    if 43 <= hue <= 63 and saturation >= 0.45 and value >= 0.8:
        return "yellow"
    if 80 <= hue <= 165 and saturation >= 0.3:
        return "green"
    if 195 <= hue <= 245 and saturation >= 0.35 and value >= 0.4:
        return "blue"
    if 256 <= hue <= 290:
        return "purple"
    return None


def hue_distance(a: np.ndarray, b: float) -> np.ndarray:
    """Degrees between hues, in [-180, 180): positive where a is ahead of b."""
    return (a - b + 180) % 360 - 180


def main_colour(rgba: np.ndarray, share: float = 0.5) -> MainColour | None:
    """The main colour of a drawing uint8 (H, W, 4), straight alpha.

    None unless at least `share` of its opaque pixels are saturated and 75 % of those lie round one hue.
    """
    hsv = to_hsv(rgba[rgba[..., 3] >= 128][:, :3])
    if len(hsv) == 0:
        return None
    saturated = hsv[(hsv[:, 1] >= 0.25) & (hsv[:, 2] >= 0.25)]
    if len(saturated) < share * len(hsv):
        return None
    counts = np.bincount((saturated[:, 0] // 10).astype(int) % 36, minlength=36)
    peak = int(np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1))) * 10 + 5
    away = hue_distance(saturated[:, 0], peak)
    near = np.abs(away) <= 30
    if near.mean() < 0.75:
        return None
    hue = float((peak + np.median(away[near])) % 360)
    saturation, value = (float(np.median(saturated[near, i])) for i in (1, 2))
    return MainColour(hue, saturation, value, colour_name(hue, saturation, value))


def turn(rgba: np.ndarray, main: MainColour, colour: str) -> np.ndarray | None:
    """The drawing with the hues round its main one turned so that the main one is `colour`.

    Other hues (a leaf, a ribbon) and greys stay. None when the outcome is not plainly of that colour, as when
    a gradient gets too dark for a yellow. Raises ValueError for a colour that is not in `NAMED`.
    """
    if colour not in NAMED:
        raise ValueError(f"colour is {colour!r}; known are {', '.join(NAMED)}")
    hue, saturation, value = NAMED[colour]
    hsv = to_hsv(rgba[..., :3])
    away = hue_distance(hsv[..., 0], main.hue)
    moved = np.stack(
        [
            (hue + 0.4 * away) % 360,  # drawn together, as a shade from orange to yellow is wider than a name
            np.clip(hsv[..., 1] * np.clip(saturation / main.saturation, 0.6, 1.6), 0, 1),
            np.clip(hsv[..., 2] * np.clip(value / main.value, 0.55, 1.6), 0, 1),
        ],
        -1,
    )
    inside = (np.abs(away) <= WINDOW) & (hsv[..., 1] > 0.08)
    made = np.concatenate([np.where(inside[..., None], to_rgb(moved), rgba[..., :3]), rgba[..., 3:]], -1)
    found = main_colour(made, share=0.4)
    return made if found is not None and found.name == colour else None
