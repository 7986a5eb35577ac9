"""Hints of controls' pictures: the picture itself, or an annotator's output for it. H W pixels."""

from typing import get_args

import numpy as np
from PIL import Image

from inkwash.pipeline.controls import Annotators, Control
from inkwash.pipeline.images import in_mode
from inkwash.weights.bytes.paths import SHIPPED_CONTROLS


def annotator_of(control: Control, image: Image.Image) -> str:
    """The annotator that makes the hint of a control's picture; none where the picture is one."""
    if control.annotator != "auto":
        return control.annotator
    named = control.file in SHIPPED_CONTROLS and control.file in get_args(Annotators)
    return control.file if named and not is_line_map(image) else "none"


def is_line_map(image: Image.Image) -> bool:
    """Return True if a picture is white lines on black: grey, nearly all of it black or white, and most of it black."""
    pixels = np.asarray(in_mode(image, "RGB"), dtype=np.int16)
    light = pixels.mean(axis=2)
    grey = np.ptp(pixels, axis=2).max() <= 8
    return bool(grey and ((light < 32) | (light > 223)).mean() > 0.95 and (light < 32).mean() > 0.6)
