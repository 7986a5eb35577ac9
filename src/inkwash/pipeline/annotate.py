"""A hint as a picture, of a picture, by a formula or by a network. H W pixels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from inkwash.annotators import ANNOTATORS
from inkwash.annotators.edges import strokes
from inkwash.pipeline.images import in_mode, to_images, to_pixels
from inkwash.weights.checkpoint import build
from inkwash.weights.hed import read_hed

BY_HED = ("hed", "scribble")  # kinds that HED's weights make


def annotate(kind: str, image: Image.Image, **numbers: float) -> Image.Image:
    """The hint of a kind of ANNOTATORS, an RGB picture of the same size; numbers are that annotator's parameters.

    Raises ValueError for an unknown kind, a number that it does not take or that is out of range, and a picture that has
    no such form: segmentation sees labels, as `in_mode` says.
    """
    if kind == "hed":
        raise ValueError("hed needs a file of its network's weights")
    if kind not in ANNOTATORS:
        raise ValueError(f"{kind!r} is not a kind of hint; there are {', '.join(ANNOTATORS)}")
    annotator = ANNOTATORS[kind]
    if surplus := [name for name in numbers if name not in annotator.numbers]:
        taken = ", ".join(annotator.numbers) or "no numbers"
        raise ValueError(f"{kind} takes {taken}, and not {surplus[0]}")
    seen = torch.from_numpy(np.array(in_mode(image, annotator.sees), dtype=np.float32))
    seen = seen.permute(2, 0, 1)[None] / 255 if annotator.sees == "RGB" else seen[None, None]
    with torch.inference_mode():
        return to_images(annotator.draw(seen, **numbers) * 2 - 1)[0]


def annotate_by_hed(kind: str, image: Image.Image, weights: Path, **numbers: float) -> Image.Image:
    """HED's soft edges of a picture, or strokes along them; an RGB picture of the same size.

    kind: one of BY_HED. numbers: a scribble's threshold. Raises ModelFileError for a file of no such weights, and
    ValueError for another kind or number.
    """
    if kind not in BY_HED or set(numbers) - {"threshold"} or (kind == "hed" and numbers):
        raise ValueError(
            f"weights are for {' and '.join(BY_HED)}, with threshold for scribble alone; {kind} was given"
        )
    network = build(read_hed(weights)).eval()
    with torch.inference_mode():
        edges = network((to_pixels(in_mode(image, "RGB")) + 1) / 2)
        return to_images((edges if kind == "hed" else strokes(edges, **numbers)) * 2 - 1)[0]
