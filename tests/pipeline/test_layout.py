"""Boxes, maps of labels and classes: what the network is shown of them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from inkwash.models.unet import UNet
from inkwash.nn.attention import Context
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.boxes import Box, number_by_name, read_box
from inkwash.pipeline.images import open_picture
from inkwash.pipeline.tasks.layout import box_tokens
from inkwash.prompts.conditioning import encode
from tests.support.tiny_models import LABELS, variants


@pytest.fixture(scope="module")
def models(tiny: Path) -> dict[str, Pipeline]:
    return variants(tiny)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, dict]]:
    """Record the arguments of the U-Nets' calls."""
    calls: list[tuple[Tensor, dict]] = []
    forward = UNet.forward

    def spy(self: UNet, x: Tensor, t: Tensor, context: Context | None = None, **cond: Tensor) -> Tensor:
        calls.append((x.clone(), cond | ({"context": context.tokens} if context else {})))
        return forward(self, x, t, context, **cond)

    monkeypatch.setattr(UNet, "forward", spy)
    return calls


ONE = {"steps": 1, "seed": 3, "sampler": "euler"}


# ---------------------------------------------------------------- categories


def published(triples: list[tuple[int, tuple[float, ...]]], num_tokens: int, most: int) -> list[int]:
    """Jahn et al.'s sequence, from a picture of the grid: a place's token is what the grid holds there."""
    side = int(num_tokens**0.5)
    grid = np.arange(side * side).reshape(side, side)

    def token(x: float, y: float) -> int:
        return int(grid[int(np.rint(y * (side - 1))), int(np.rint(x * (side - 1)))])

    found = [[category, token(b[0], b[1]), token(b[2], b[3])] for category, b in triples]
    found += [[num_tokens - 1] * 3] * (most - len(found))
    return [*np.concatenate(found).tolist(), token(0, 0), token(1, 1)]


def test_tokens_of_the_published_models() -> None:
    """92 tokens of 8192: 30 boxes on a grid of 90 x 90, and the whole picture."""
    boxes = [Box(0, 0, 1, 1, "5"), Box(0.5, 0.25, 0.75, 1, "182")]
    made = box_tokens(boxes, 92, 8192)
    assert made[:6] == [5, 0, 8099, 182, 22 * 90 + 44, 89 * 90 + 67]  # 44.5 is rounded to even
    assert made[6:90] == [8191] * 84 and made[90:] == [0, 8099]


sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
corners = st.tuples(sides, sides).map(lambda s: tuple(side / 1000 for side in (*s[0], *s[1])))
corners = corners.map(lambda b: (b[0], b[2], b[1], b[3]))


@given(boxes=st.lists(st.tuples(st.integers(0, 8190), corners), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_tokens_are_the_published_sequence(boxes: list) -> None:
    made = box_tokens([Box(*place, str(category)) for category, place in boxes], 92, 8192)
    assert made == published(boxes, 8192, 30)


def test_the_network_sees_the_embedded_tokens(models: dict[str, Pipeline], seen: list) -> None:
    model = models["categories"]
    boxes = ["0,0.5,0.6,1=7", (0.5, 0, 1, 1, 80)]
    image = model.layout_to_image(boxes, batch_size=2, **ONE)[0]
    tokens = torch.tensor([published([(7, (0, 0.5, 0.6, 1)), (80, (0.5, 0, 1, 1))], 90, 3)])
    wanted = model.cond_stage(tokens)[0]
    for _, cond in seen:
        torch.testing.assert_close(cond["context"], wanted.expand(2, -1, -1))
    assert len(seen) == 1  # nothing was trained that guidance could go from
    assert 'Boxes: "0,0.5,0.6,1=7; 0.5,0,1,1=80"' in image.info["parameters"]


def test_names_of_categories() -> None:
    boxes = [Box(0, 0, 1, 1, what) for what in ("dog", "17", "traffic light")]
    named = number_by_name(["person", "dog ", "traffic light", "dog"], boxes)
    assert [box.what for box in named] == ["1", "17", "2"]
    with pytest.raises(ValueError, match="no category 'dgo'; near: dog"):
        number_by_name(["person", "dog"], [Box(0, 0, 1, 1, "dgo")])


# ---------------------------------------------------------------- words


def test_boxes_are_read_as_they_are_written() -> None:
    assert read_box("0, 0.5,1,1= a red book") == Box(0, 0.5, 1, 1, "a red book")
    assert read_box(str(Box(0, 0.25, 1, 1, "a=b, c"))) == Box(0, 0.25, 1, 1, "a=b, c")
    for text in ("", "0,0,1=a", "0,0,1,1", "0,0,1,1=", "0,0,1,1= ", "a,0,1,1=b", "0,0,2,1=b", "0.5,0,0.5,1=b",
                 "nan,0,1,1=b", "-0.1,0,1,1=b", "0,0,1,1,1=b"):  # fmt: skip
        with pytest.raises(ValueError, match="is not a box"):
            read_box(text)


def test_a_box_holds_its_words_vector_and_later_ones_lie_above(
    models: dict[str, Pipeline], seen: list
) -> None:
    model = models["layout"]
    boxes = ["0,0.5,0.6,1=a taxi", "0.5,0,1,1=a [rocket:2]"]
    model.layout_to_image(boxes, "a picture", cfg_scale=3, **ONE)
    tower = model.text_encoders[0]
    with torch.no_grad():
        taxi, rocket = (
            tower.model(torch.tensor(tower.tokenizer([text])))[1][0] for text in ("a taxi", "a [rocket:2]")
        )
    wanted = torch.zeros(8, 16, 16)
    wanted[:, 8:, :10] = taxi[:, None, None]  # 9.6 columns: what a box touches is its own
    wanted[:, :, 8:] = rocket[:, None, None]
    ((x, cond),) = seen
    assert torch.equal(x[0, 4:], wanted) and not x[1, 4:].any()  # guidance goes from a map of nothing
    texts = encode(model.text_encoders, ["a picture", ""])
    assert torch.equal(cond["context"], torch.stack([texts["a picture"][0], texts[""][0]]))


def test_a_map_that_nothing_looks_at_changes_nothing(models: dict[str, Pipeline]) -> None:
    layout, plain = models["layout"], models["plain"]
    tensors = plain.unet.state_dict()
    first = "input_blocks.0.0.weight"
    tensors[first] = F.pad(tensors[first], (0, 0, 0, 0, 0, 8))
    unet = UNet(layout.unet.config)
    unet.load_state_dict(tensors)
    blind = replace(layout, unet=unet.eval().requires_grad_(False))
    options = {"steps": 3, "seed": 5, "cfg_scale": 4}
    made = blind.layout_to_image([(0, 0, 0.5, 1, "a taxi")], "a rocket", "rain", **options)[0]
    wanted = plain.text_to_image("a rocket", "rain", **options)[0]
    assert np.abs(np.asarray(made, dtype=int) - np.asarray(wanted, dtype=int)).max() <= 1
    other = layout.layout_to_image([(0.5, 0, 1, 1, "a taxi")], "a rocket", "rain", **options)[0]
    here = layout.layout_to_image([(0, 0, 0.5, 1, "a taxi")], "a rocket", "rain", **options)[0]
    assert np.abs(np.asarray(other, dtype=int) - np.asarray(here, dtype=int)).mean() > 1


@pytest.mark.parametrize(
    ("variant", "boxes", "message"),
    [
        ("plain", ["0,0,1,1=a"], "needs a model that sees boxes"),
        ("layout", [], "boxes"),
        ("layout", ["0,0,1.5,1=a"], "is not a box"),
        ("layout", [(0.5, 0, 0.2, 1, "a")], "coordinates must be in 0..1"),
        ("categories", ["0,0,1,1=dog"], "'dog' is not the number of a category, 0 to 88"),
        ("categories", ["0,0,1,1=89"], "'89' is not the number of a category, 0 to 88"),
        ("categories", ["0,0,1,1=1"] * 4, "4 boxes are more than the 3"),
    ],
)
def test_layouts_that_cannot_be(models: dict[str, Pipeline], variant: str, boxes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models[variant].layout_to_image(boxes)


def test_a_model_that_sees_more_than_words_says_by_what_it_is_drawn(models: dict[str, Pipeline]) -> None:
    for variant, prompt, verb in (
        ("layout", "a", "inkwash layout"),
        ("semantic", "", "inkwash semantic"),
        ("depth", "a", "inkwash depth"),
        ("instruct", "a", "inkwash instruct"),
        ("upscaler", "a", "inkwash upscale"),
    ):
        with pytest.raises(ValueError, match=verb):
            models[variant].text_to_image(prompt)
    with pytest.raises(ValueError, match="sees no text"):
        models["categories"].layout_to_image(["0,0,1,1=1"], "a taxi")


# ---------------------------------------------------------------- labels


def test_labels_are_one_hot_channels_averaged_and_mapped(models: dict[str, Pipeline], seen: list) -> None:
    """Halving a size bilinearly is the mean of 2x2; the latent is here half as large as the picture, not a fourth."""
    model = models["semantic"]
    image = model.semantic_to_image(LABELS, batch_size=2, **ONE)[0]
    assert image.size == LABELS.size
    fine = np.asarray(LABELS).repeat(2, 0).repeat(2, 1)
    one_hot = torch.from_numpy(np.stack([fine == label for label in range(7)])).float()[None]
    wanted = model.cond_stage.channel_mapper(F.avg_pool2d(one_hot, 4))
    ((x, _),) = seen
    torch.testing.assert_close(x[:, 4:], wanted.expand(2, -1, -1, -1))
    assert model.semantic_to_image(LABELS, width=64, height=48, **ONE)[0].size == (64, 48)


def test_labels_of_a_palette_are_its_numbers(models: dict[str, Pipeline], tmp_path: Path) -> None:
    coloured = LABELS.copy().convert("P")
    coloured.putdata(LABELS.tobytes())
    coloured.putpalette([250, 3, 3, 0, 9, 200] * 4)
    for name, image in (("grey.png", LABELS), ("palette.png", coloured)):
        image.save(tmp_path / name)
        read = open_picture(tmp_path / name, "P")
        assert read.mode == "L" and np.array_equal(np.asarray(read), np.asarray(LABELS))
    a, b = (models["semantic"].semantic_to_image(image, **ONE)[0].tobytes() for image in (LABELS, coloured))
    assert a == b
    coloured.convert("RGB").save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb.png: a map of labels has a palette or is grey.* mode RGB"):
        open_picture(tmp_path / "rgb.png", "P")


def test_labels_that_cannot_be(models: dict[str, Pipeline]) -> None:
    with pytest.raises(ValueError, match="the map has label 7, and the model's are 0 to 6"):
        models["semantic"].semantic_to_image(Image.new("L", (32, 32), 7))
    with pytest.raises(ValueError, match="needs a model that sees a label map"):
        models["plain"].semantic_to_image(LABELS)


# ---------------------------------------------------------------- classes


def test_a_class_beside_words_is_guided_from_the_last_one(models: dict[str, Pipeline], seen: list) -> None:
    model = models["labelled"]
    model.text_to_image("a taxi", class_label=3, batch_size=2, cfg_scale=3, **ONE)
    ((_, cond),) = seen
    assert cond["vector"].tolist() == [3, 3, 9, 9]
    for label in (None, 10):
        with pytest.raises(ValueError, match=f"class_label {label} is not one of tiny's 0 to 9"):
            model.text_to_image("a taxi", class_label=label)
