"""Held-out pictures as files that `inkwash evaluate` reads."""

from pathlib import Path

import numpy as np

from inkwash.metrics.pictures import picture_set
from recipes.mini.evaluate import export_pictures
from recipes.mini.pictures import Pictures


def test_captioned_pictures_are_written_with_their_captions(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    kinds = ("single", "clipart", "scene", "single")
    records = [{"kind": kind, "caption": f"number {k}"} for k, kind in enumerate(kinds)]
    assert export_pictures(Pictures(images, records), tmp_path) == 3
    found = picture_set(tmp_path)
    assert found.captions() == ["number 0", "number 2", "number 3"]
    (pixels,) = found.batches()
    np.testing.assert_array_equal(((pixels[1] + 1) * 127.5).round().permute(1, 2, 0).numpy(), images[2])
