"""Masks and fills as the inpainting nodes of Krita's plugin make them (comfyui-inpaint-nodes). H W size, n kernel.

A mask is a picture of mode L, white where to draw; between nodes it is rounded to 8 bits.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[np.float64]  # (H, W) or (H, W, channels), 0 to 1
FULL = 0.99  # from which a mask counts as whole
BLURS = ("gaussian", "box", "linear")


def values_of(image: Image.Image) -> Values:
    return np.asarray(image, np.float64) / 255


def image_of(values: Values) -> Image.Image:
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def odd(n: int) -> int:
    """The next odd number; 0 stays."""
    return n + 1 if n > 0 and n % 2 == 0 else n


def kernel_of(n: int, kind: str = "gaussian") -> Values:
    """The weights of a blur, whose sum is 1. n: odd."""
    if kind == "gaussian":
        weights = np.exp(-0.5 * (np.arange(-(n // 2), n // 2 + 1) / (0.3 * (n - 1) + 0.8)) ** 2)
    elif kind == "box" or n == 3:
        weights = np.ones(n)
    else:
        half = n // 2
        side = np.linspace(1 / half, (half - 1) / half, half)
        weights = np.concatenate([side, [1.0], side[::-1]])
    return weights / weights.sum()


def blurred(values: Values, kernel: Values) -> Values:
    """Values convolved along both axes, reflected at the edges. Raises ValueError for a kernel that is too wide."""
    n = len(kernel)
    before, after = (n - 1) // 2, n - 1 - (n - 1) // 2
    if after >= min(values.shape[:2]):
        raise ValueError(f"a blur of {n} is too wide for {values.shape[1]}x{values.shape[0]}")
    for axis in (0, 1):
        size = values.shape[axis]
        seen = np.abs(np.arange(size)[:, None] + np.arange(n) - before)
        seen = size - 1 - np.abs(size - 1 - seen)
        weights = np.zeros((size, size))  # a product of matrices costs the same for a kernel of any width
        np.add.at(weights, (np.arange(size)[:, None], seen), kernel)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def grown(mask: Values, radius: int, less: int = 0) -> Values:
    """1 wherever something of the mask lies within a square. less: by how much it reaches less far right and down."""
    return (counted(mask > 0, radius, less) > 0).astype(float)


def shrunk(mask: Values, radius: int) -> Values:
    """1 wherever all of the square lies within the mask, which goes on outside of the picture."""
    return (counted(mask < 1, radius) == 0).astype(float)


def counted(which: NDArray[np.bool_], radius: int, less: int = 0) -> NDArray[np.int64]:
    """Number of pixels within a square around each, by running sums."""
    counts = which.astype(np.int64)
    for axis in (0, 1):
        size = counts.shape[axis]
        sums = np.insert(counts.cumsum(axis), 0, 0, axis)
        places = np.arange(size)
        high, low = (places + radius + 1 - less).clip(max=size), (places - radius).clip(min=0)
        counts = sums.take(high, axis) - sums.take(low, axis)
    return counts


def softened(mask: Values, falloff: int) -> Values:
    """A mask's whole part (0 or 1), which fades inward over a falloff."""
    alpha = (mask >= FULL).astype(float)
    return alpha * blurred(shrunk(alpha, falloff), kernel_of(falloff)) if falloff > 0 else alpha


def resized_mask(mask: Values, change: int, blur: int, kind: str = "gaussian") -> Values:
    """A mask that grows by pixels, or shrinks where they are negative, and is blurred then."""
    if change:
        mask = grown(mask, change) if change > 0 else shrunk(mask, -change)
    blur = odd(blur)
    # the gaussian one starts at 1, which does nothing, the others at 3
    return blurred(mask, kernel_of(blur, kind)) if blur > 2 else mask


def filled_grey(image: Values, mask: Values, falloff: int) -> Values:
    """A picture with grey in the masked part."""
    return (image - 0.5) * (1 - softened(mask, odd(falloff))[..., None]) + 0.5


def filled_blurred(image: Values, mask: Values, blur: int, falloff: int) -> Values:
    """A picture that is blurred in the masked part."""
    blur = odd(blur)
    alpha = softened(mask, min(odd(falloff), blur - 2))[..., None]
    return image + (blurred(image, kernel_of(blur)) - image) * alpha
