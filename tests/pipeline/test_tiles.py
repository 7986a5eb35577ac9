"""Large pictures drawn over in tiles, against the same tiles one by one."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import ValidationError

import inkwash
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from inkwash.pipeline.task_requests import ImageRequest
from inkwash.pipeline.tiles import TileLayout
from inkwash.serve.cells import num_steps

OPTIONS = {
    "prompt": "a red taxi",
    "steps": 3,
    "strength": 0.5,
    "cfg_scale": 3.0,
    "seed": 7,
    "step_rule": "exact",
}
TILES = {"tile": 64, "tile_padding": 16, "tile_blending": 8}


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return inkwash.load("mini")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_noise((96, 160), 60).convert("RGB").resize((96, 160))


def by_hand(
    model: Pipeline, picture: Image.Image, hint: Image.Image | None = None, **more: Any
) -> np.ndarray:
    """What is drawn of each tile, blended by OpenCV's box."""
    made, (height, width) = np.asarray(picture, float), (picture.height, picture.width)
    # 32 pixels a tile are its own: 96 in 3 of (96 + 2 * 32) / 3, up to a multiple of 8; 160 in 5 of (160 + 4 * 32) / 5
    rows = [(k * 32, min(k * 32 + 64, height)) for k in range(5)]
    columns = [(k * 24, min(k * 24 + 56, width)) for k in range(3)]
    for across, (left, right) in enumerate(columns):
        for down, (top, bottom) in enumerate(rows):

            def inset(
                by: int, top: int = down, left: int = across, size: Any = (bottom - top, right - left)
            ) -> Any:
                weights = np.zeros(size, np.float32)
                rows, columns = by if top else 0, by if left else 0
                weights[rows : None if top == 4 else -by, columns : None if left == 2 else -by] = 1
                return weights

            tile = picture.crop((left, top, right, bottom))
            mask = Image.fromarray((inset(8) * 255).astype(np.uint8))
            if hint:
                more["controls"] = [
                    Control(file="canny", image=hint.crop((left, top, right, bottom)), annotator="none")
                ]
            options = OPTIONS | more
            (drawn,) = model.inpaint(image=tile, mask=mask, mask_blur=0, blend_mask=True, **options)
            kept = cv2.blur(inset(16), (8, 8), anchor=(3, 3), borderType=cv2.BORDER_REFLECT_101)[..., None]
            part = made[top:bottom, left:right]
            made[top:bottom, left:right] = (1 - kept) * part + kept * np.asarray(drawn, float)
    return made


def test_tiles_are_pictures_of_their_own_that_are_blended(model: Pipeline, picture: Image.Image) -> None:
    seen = []
    (made,) = model.image_to_image(
        image=picture, **OPTIONS, **TILES, on_step=lambda step: seen.append(step.index)
    )
    assert made.size == picture.size
    assert np.abs(np.asarray(made, float) - by_hand(model, picture)).max() <= 2  # a rounding for each tile
    assert seen == list(range(15 * 3))
    request = ImageRequest(**OPTIONS, **TILES, width=96, height=160)
    assert num_steps(request) == len(seen)
    (whole,) = model.image_to_image(image=picture, **OPTIONS)
    assert np.abs(np.asarray(made, float) - np.asarray(whole, float)).mean() > 2


def test_tiles_cover_every_picture_and_none_is_empty() -> None:
    outside = 0
    for size in range(8, 1200, 8):
        for least, padding in ((32, 0), (32, 15), (64, 10), (64, 31), (128, 32), (520, 40)):
            layout = TileLayout((size, 8), least, padding, 0, 8)
            covered = np.zeros(size, int)
            for k in range(layout.num):
                (start, end), _ = layout.spans(k)
                assert 0 <= start < end <= size
                (start, end), _ = layout.spans(k, padding)
                covered[start : max(end, start)] += 1
            assert covered.min() >= 1, (size, least, padding)
            outside += layout.num < max(1, size // (least - 2 * padding))
    assert outside  # of those that the plugin can't lay out, there are some


def test_a_last_tile_of_a_few_pixels_is_drawn(model: Pipeline) -> None:
    layout = TileLayout((248, 32), 32, 0, 0, 8)
    assert layout.spans(layout.num - 1)[0] == (240, 248)
    picture = Image.effect_noise((32, 248), 60).convert("RGB")
    options = OPTIONS | {"tile": 32, "tile_padding": 0, "tile_blending": 0, "steps": 2}
    (made,) = model.image_to_image(image=picture, **options)
    assert made.size == picture.size


def test_a_controls_picture_is_cut_as_the_picture_is(model: Pipeline, picture: Image.Image) -> None:
    edges = Image.fromarray(cv2.Canny(cv2.GaussianBlur(np.asarray(picture), (9, 9), 0), 20, 60))
    large = edges.resize((192, 320), Image.Resampling.NEAREST)
    made = {}
    for name, hint in (("own size", edges), ("larger", large)):
        control = Control(file="canny", image=hint, annotator="none", resize="just")
        (made[name],) = model.image_to_image(image=picture, **OPTIONS, **TILES, controls=[control])
    wanted = by_hand(model, picture, edges.convert("RGB"))
    assert np.abs(np.asarray(made["own size"], float) - wanted).max() <= 2
    (plain,) = model.image_to_image(image=picture, **OPTIONS, **TILES)
    # the larger hint shows the same edges, resized
    changes = [np.abs(np.asarray(other, float) - wanted).mean() for other in (made["larger"], plain)]
    assert changes[0] < changes[1] / 2


def test_a_picture_is_enlarged_to_the_size_that_is_wanted(model: Pipeline, picture: Image.Image) -> None:
    (made,) = model.image_to_image(image=picture, **OPTIONS, **TILES, width=128, height=200)
    assert made.size == (128, 200)
    whole = ImageOps.fit(picture, (128, 200), Image.Resampling.LANCZOS)
    (same,) = model.image_to_image(image=whole, **OPTIONS, **TILES)
    assert made.tobytes() == same.tobytes()


def test_a_tile_as_large_as_the_picture_is_the_whole(model: Pipeline, picture: Image.Image) -> None:
    tiled, whole = (model.image_to_image(image=picture, **OPTIONS, tile=tile)[0] for tile in (256, None))
    assert tiled.tobytes() == whole.tobytes()
    assert "Tile size: 256" in tiled.info["parameters"] and "Tile" not in whole.info["parameters"]


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        ({"tile": 16}, "tile\\s+Input should be greater than or equal to 32"),
        ({"tile": 64, "tile_padding": 32}, "tile_padding 32 is not less than half of tile 64"),
        ({"tile": 256, "tile_padding": 8}, "tile_blending 16 is above tile_padding 8"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiles: dict[str, int], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImageRequest(prompt="a", **tiles)
    assert ImageRequest(prompt="a", tile_padding=8).tile is None  # no tile, nothing to fit
