"""Masks, outpainting and boxes on the canvas."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from tests.serve.web.fake_api import FakeApi
from tests.serve.web.test_page_drawing import choose, draw, pick


def mask_of(body: dict[str, Any]) -> np.ndarray:
    """The mask that was sent, H x W, 0 to 255."""
    data = base64.b64decode(body["images"]["mask"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def stroke(page: Any, *points: tuple[float, float], canvas: str = "canvas.paint") -> None:
    """Drag over the canvas; points are fractions of it."""
    box = page.locator(canvas).bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def open_mask(page: Any) -> None:
    pick(page, "Inpaint")
    choose(page, "image")
    expect(page.locator("canvas.paint")).to_be_visible()


def test_what_is_painted_is_white_in_the_mask_and_the_rest_black(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.25, 0.5), (0.75, 0.5))
    mask = mask_of(draw(page, api))
    assert mask.shape == (128, 128)
    assert (mask[60:68, 32:96] == 255).all() and not mask[:40].any() and not mask[88:].any()


def test_the_eraser_takes_away_and_undo_and_redo_go_through_the_strokes(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.25, 0.5), (0.75, 0.5))
    pick(page, "Eraser")
    stroke(page, (0.75, 0.5), (0.75, 0.5))
    whole, erased = (64, 40), (64, 96)
    mask = mask_of(draw(page, api))
    assert mask[whole] == 255 and mask[erased] == 0
    pick(page, "Canvas")
    page.get_by_role("button", name="Undo").click()
    assert mask_of(draw(page, api))[erased] == 255
    pick(page, "Canvas")
    page.get_by_role("button", name="Redo").click()
    assert mask_of(draw(page, api))[erased] == 0


def test_undo_goes_back_over_layers_that_were_added_and_removed(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.2, 0.2), (0.2, 0.2))
    page.get_by_role("button", name="New layer").click()
    stroke(page, (0.8, 0.8), (0.8, 0.8))
    page.get_by_role("button", name="Remove layer 1").click()
    first, second = (25, 25), (102, 102)
    mask = mask_of(draw(page, api))
    assert mask[first] == 0 and mask[second] == 255
    for expected in ((255, 255), (255, 0)):  # the layer is there again, then the second stroke is gone
        pick(page, "Canvas")
        page.get_by_role("button", name="Undo").click()
        mask = mask_of(draw(page, api))
        assert (mask[first], mask[second]) == expected


def test_layers_of_a_soft_mask_have_strengths_of_their_own(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.2, 0.2), (0.2, 0.2))
    strength = page.get_by_label("Strength of the layer, percent")
    expect(strength).to_be_hidden()
    page.get_by_role("button", name="New layer").click()
    stroke(page, (0.8, 0.8), (0.8, 0.8))
    page.get_by_label("Soft mask", exact=True).check()
    strength.fill("40")
    first, second = (25, 25), (102, 102)
    mask = mask_of(draw(page, api))
    assert mask[first] == 255 and abs(int(mask[second]) - 102) <= 1
    pick(page, "Canvas")
    page.get_by_role("button", name="Layer 1", exact=True).click()
    expect(strength).to_have_value("100")
    page.get_by_label("Soft mask", exact=True).uncheck()
    assert mask_of(draw(page, api))[second] == 255


def test_an_empty_mask_is_not_sent(page: Any, api: FakeApi) -> None:
    open_mask(page)
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("Paint over the picture first")
    assert not api.bodies


def test_layers_add_up_and_a_hidden_one_does_not_count(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.2, 0.2), (0.2, 0.2))
    page.get_by_role("button", name="New layer").click()
    stroke(page, (0.8, 0.8), (0.8, 0.8))
    first, second = (25, 25), (102, 102)
    mask = mask_of(draw(page, api))
    assert mask[first] == 255 and mask[second] == 255
    pick(page, "Canvas")
    page.get_by_role("button", name="Hide layer 1").click()
    mask = mask_of(draw(page, api))
    assert mask[first] == 0 and mask[second] == 255


def test_invert_and_clear(page: Any, api: FakeApi) -> None:
    open_mask(page)
    stroke(page, (0.5, 0.5), (0.5, 0.5))
    page.get_by_role("button", name="Invert").click()
    mask = mask_of(draw(page, api))
    assert mask[64, 64] == 0 and mask[5, 5] == 255
    pick(page, "Canvas")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("Paint over the picture first")


def test_a_mask_is_painted_by_the_keyboard_alone(page: Any, api: FakeApi) -> None:
    open_mask(page)
    canvas = page.locator("canvas.paint")
    canvas.focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "Space"):
        canvas.press(key)
    assert mask_of(draw(page, api))[64, 64] == 255
    pick(page, "Canvas")
    canvas.press("Control+z")
    canvas.press("Control+z")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("Paint over the picture first")


def test_a_side_is_dragged_outward_for_outpainting(page: Any, api: FakeApi) -> None:
    pick(page, "Outpaint")
    choose(page, "image")
    # the picture of 128 lies in the middle of 256; a quarter of the canvas is 64 pixels
    stroke(page, (0.75, 0.5), (0.875, 0.5), canvas="canvas.extend")
    expect(page.get_by_label("Right", exact=True)).to_have_value("32")
    page.get_by_label("Top", exact=True).fill("16")
    request = draw(page, api)["request"]
    assert {side: request.get(side, 0) for side in ("left", "top", "right", "bottom")} == {
        "left": 0, "top": 16, "right": 32, "bottom": 0,
    }  # fmt: skip


def test_boxes_are_drawn_and_named_for_a_layout(page: Any, api: FakeApi) -> None:
    api.models[0]["tasks"].append("layout_to_image")
    page.reload()
    pick(page, "Layout to image")
    stroke(page, (0.1, 0.2), (0.5, 0.6), canvas=".plane")
    page.get_by_label("Box 1: what it holds").fill("a red book")
    x0, y0, x1, y1, what = draw(page, api)["request"]["boxes"][0]
    assert np.allclose((x0, y0, x1, y1), (0.1, 0.2, 0.5, 0.6), atol=0.011) and what == "a red book"
