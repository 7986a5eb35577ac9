"""Summary of a dataset: sizes, buckets, captions, broken and doubled pictures, and a sheet of some. N pictures."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from inkwash.data.buckets import BucketRules, place
from inkwash.data.examples import BrokenPicture, Example
from inkwash.explain.tiles import labelled_sheet

MAX_BITS = 10  # of 128 in which near pictures' gradients differ at most
MAX_DIFFERENCE = 6.0  # of 255, the mean over their thumbnails
TILE = 144


@dataclass(frozen=True)
class Inspection:
    """Summary of a dataset.

    pictures: how many can be read. sizes: least, median and greatest width and height. words: the same three figures of
    the captions' lengths. exact, near: groups of pictures with equal bytes, or that look alike.
    """

    pictures: int
    seen: int  # in an epoch, with repeats
    broken: list[str]
    sizes: dict[str, tuple[int, int, int]]
    buckets: dict[str, int]
    too_small: list[str]
    without_caption: int
    words: tuple[int, int, int]
    tags: dict[str, int]
    exact: list[list[str]]
    near: list[list[str]]
    roles: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        (w0, w1, w2), (h0, h1, h2) = self.sizes["width"], self.sizes["height"]
        made = [
            f"{self.pictures:,} pictures, {self.seen:,} seen in an epoch; {len(self.broken)} broken",
            f"width {w0} to {w2}, median {w1}; height {h0} to {h2}, median {h1}",
            "buckets: " + ", ".join(f"{size} {num}" for size, num in self.buckets.items()),
            f"captions: {self.without_caption} missing; words {self.words[0]} to {self.words[2]}, median {self.words[1]}",
            "most frequent: " + ", ".join(f"{tag} {num}" for tag, num in list(self.tags.items())[:12]),
        ]
        made += (
            ["roles: " + ", ".join(f"{role} {num}" for role, num in self.roles.items())] if self.roles else []
        )
        made += [f"the same bytes: {' = '.join(group)}" for group in self.exact]
        made += [f"look the same: {' ~ '.join(group)}" for group in self.near]
        return [*made, *(f"broken: {message}" for message in [*self.broken, *self.too_small])]


def inspect_examples(examples: Sequence[Example], rules: BucketRules) -> tuple[Inspection, Image.Image]:
    """Read every picture once; what there is, and the contact sheet. Raises ValueError where none can be read."""
    good, broken, small, hashes, thumbs = [], [], [], [], []
    buckets: Counter[str] = Counter()
    digests: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        try:
            image = example.open()
        except BrokenPicture as error:
            broken.append(str(error))
            continue
        good.append(example)
        digests[example.digest].append(str(example.image))
        hashes.append(gradient_bits(image))
        thumbs.append(np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32))
        try:
            width, height = place(image.size, rules).bucket
            buckets[f"{width}x{height}"] += example.repeats
        except ValueError as error:
            small.append(f"{example.image}: {error}")
    if not good:
        raise ValueError(f"none of {len(examples)} pictures can be read; the first: {broken[0]}")
    exact = [group for group in digests.values() if len(group) > 1]
    names = [str(example.image) for example in good]
    tags = Counter(
        tag for example in good for tag in {t.strip() for t in example.captions[0].split(",")} - {""}
    )
    words = [len(text.split()) for example in good for text in example.captions if text.strip()]
    made = Inspection(
        pictures=len(good),
        seen=sum(example.repeats for example in good),
        broken=broken,
        sizes={
            axis: spread([example.size[k] for example in good]) for k, axis in enumerate(("width", "height"))
        },
        buckets=dict(sorted(buckets.items())),
        too_small=small,
        without_caption=sum(not any(text.strip() for text in example.captions) for example in good),
        words=spread(words or [0]),
        tags=dict(tags.most_common(100)),
        exact=exact,
        near=near_groups(hashes, thumbs, names, exact),
        roles=dict(Counter(role for example in good for role in example.pictures)),
    )
    return made, contact_sheet(good)


def spread(values: Sequence[int]) -> tuple[int, int, int]:
    """The least, the median and the greatest."""
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def gradient_bits(image: Image.Image) -> int:
    """128 bits: where a picture of 9 x 8, and one of 8 x 9, grows lighter to the right, and downwards."""
    grey = image.convert("L")
    wide, tall = (np.asarray(grey.resize(size, Image.Resampling.BOX), int) for size in ((9, 8), (8, 9)))
    bits = np.concatenate([(wide[:, 1:] > wide[:, :-1]).ravel(), (tall[1:] > tall[:-1]).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_groups(
    hashes: Sequence[int], thumbs: Sequence[np.ndarray], names: Sequence[str], exact: Iterable[Iterable[str]]
) -> list[list[str]]:
    """Groups of pictures that look alike but differ in their bytes.

    Of MAX_BITS differing bits at most, two of 16 bytes more than MAX_BITS / 2 must be equal; those are compared alone.
    """
    same = {name: k for k, group in enumerate(exact) for name in group}
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, bits in enumerate(hashes):
        for band in range(16):
            bands[band, bits >> (8 * band) & 255].append(k)
    parent = list(range(len(names)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    tried: set[tuple[int, int]] = set()
    for members in bands.values():
        for a, b in combinations(members, 2):
            if (a, b) in tried:
                continue
            tried.add((a, b))
            if (hashes[a] ^ hashes[b]).bit_count() <= MAX_BITS and np.abs(
                thumbs[a] - thumbs[b]
            ).mean() <= MAX_DIFFERENCE:
                parent[root(b)] = root(a)
    groups: dict[int, list[str]] = defaultdict(list)
    for k, name in enumerate(names):
        groups[root(k)].append(name)
    # a group of copies alone is named as such already
    return [g for g in groups.values() if len(g) > 1 and len({same.get(name, name) for name in g}) > 1]


def contact_sheet(examples: Sequence[Example], num: int = 48) -> Image.Image:
    """A fixed selection of the pictures, each with its caption below."""
    chosen = [examples[i] for i in sorted(Random(0).sample(range(len(examples)), min(num, len(examples))))]
    captions = [(example.captions[0] or "no caption").splitlines()[0] for example in chosen]
    title = f"{len(chosen)} of {len(examples):,} pictures"
    across = min(8, max(1, math.ceil(len(chosen) ** 0.5 * 1.3)))
    return labelled_sheet([thumbnail(example) for example in chosen], captions, title, across, TILE)


def thumbnail(example: Example) -> Image.Image:
    image = example.open()
    image.thumbnail((TILE, TILE))
    return image


def as_json(found: Inspection) -> dict[str, Any]:
    """The fields as JSON has them."""
    return dict(vars(found))
