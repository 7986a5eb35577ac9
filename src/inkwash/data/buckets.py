"""Aspect-ratio buckets: pictures of near shapes share a size, so that little of each is cropped. Sizes are (width, height).

The scheme is NovelAI's, as kohya's trainer has it: all sizes in steps whose area is at most that of the resolution.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

Size = tuple[int, int]


@dataclass(frozen=True)
class BucketRules:
    """Rules for the sizes of buckets.

    resolution: the largest area, as a size. step: sides are multiples of it. low, high: limits of sides, in pixels.
    enabled: False gives every picture the resolution itself. upscale: whether small pictures are enlarged; by default
    they keep their size, in buckets of their own.
    """

    resolution: Size
    step: int = 64
    low: int = 256
    high: int = 2048
    enabled: bool = True
    upscale: bool = False


@dataclass(frozen=True)
class Placement:
    """A picture's bucket, and the size that it is scaled to before it is cropped to that."""

    bucket: Size
    scaled: Size


@lru_cache
def bucket_sizes(rules: BucketRules) -> tuple[Size, ...]:
    """The sizes of all buckets, sorted."""
    area = math.prod(rules.resolution)
    found: set[Size] = set()
    for side in range(rules.low - rules.low % -rules.step, rules.high + 1, rules.step):
        other = min(rules.high, area // side // rules.step * rules.step)
        if other >= rules.low:
            found |= {(side, other), (other, side)}
    square = int(area**0.5) // rules.step * rules.step
    side = max(square, rules.step)
    return tuple(sorted(found | {(side, side)}))


def place(size: Size, rules: BucketRules) -> Placement:
    """The bucket for a picture of this size: the one of the nearest aspect ratio.

    Raises ValueError for a picture that is smaller than one step.
    """
    if not rules.enabled:
        return Placement(rules.resolution, covering(size, rules.resolution))
    width, height = size
    small = width * height <= math.prod(rules.resolution)
    if small and not rules.upscale:
        bucket = (width // rules.step * rules.step, height // rules.step * rules.step)
        if 0 in bucket:
            raise ValueError(f"{width}x{height} is smaller than a bucket's step of {rules.step} pixels")
        return Placement(bucket, size)
    aspect = math.log(width / height)
    bucket = min(
        bucket_sizes(rules), key=lambda one: (abs(math.log(one[0] / one[1]) - aspect), -one[0] * one[1])
    )
    return Placement(bucket, covering(size, bucket))


def covering(size: Size, room: Size) -> Size:
    """The size, scaled so that it just covers the room."""
    scale = max(room[0] / size[0], room[1] / size[1])
    return max(room[0], round(size[0] * scale)), max(room[1], round(size[1] * scale))
