"""A hint as a picture, of a picture. H W pixels."""

import numpy as np
import torch
from PIL import Image

from inkwash.annotators import ANNOTATORS
from inkwash.pipeline.images import in_mode, to_images


def annotate(kind: str, image: Image.Image, **numbers: float) -> Image.Image:
    """The hint of a kind of ANNOTATORS, an RGB picture of the same size; numbers are what that annotator takes.

    Raises ValueError for an unknown kind, a number that it does not take or that is out of range, and a picture that has
    no such form: segmentation sees labels, as `in_mode` says.
    """
    if kind not in ANNOTATORS:
        raise ValueError(f"{kind!r} is no kind of hint; there are {', '.join(ANNOTATORS)}")
    annotator = ANNOTATORS[kind]
    if surplus := [name for name in numbers if name not in annotator.numbers]:
        taken = ", ".join(annotator.numbers) or "no numbers"
        raise ValueError(f"{kind} takes {taken}, and not {surplus[0]}")
    seen = torch.from_numpy(np.array(in_mode(image, annotator.sees), dtype=np.float32))
    seen = seen.permute(2, 0, 1)[None] / 255 if annotator.sees == "RGB" else seen[None, None]
    with torch.inference_mode():
        return to_images(annotator.draw(seen, **numbers) * 2 - 1)[0]
