"""Scenes made of plain squares, by a judge that knows squares by their colours: every figure has a known answer."""

import pytest
import torch
from torch import Tensor

from inkwash.metrics.scenes import CropJudge, Scene, crops, scene_figures, windows

COLOURS = {"cherry": (0.9, -0.9, -0.9), "leaf": (-0.5, 0.6, -0.5), "sea": (-0.6, -0.2, 0.9)}
PLACES = {"left": (6, 22), "right": (38, 22), "top": (22, 6), "bottom": (22, 38)}
SIDE = 64


def picture(**objects: str) -> Tensor:
    """Squares of 20 pixels on white, (1, 3, 64, 64): name=place."""
    made = torch.ones(3, SIDE, SIDE)
    for name, place in objects.items():
        x, y = PLACES[place]
        made[:, y : y + 20, x : x + 20] = torch.tensor(COLOURS[name])[:, None, None]
    return made[None]


def classify(crop: Tensor) -> Tensor:
    """How much of the middle of a crop is of each colour; a name besides is said where there is nothing."""
    middle = crop[:, :, 2:-2, 2:-2]
    wanted = torch.tensor(list(COLOURS.values()))
    near = (middle[:, None] - wanted[None, :, :, None, None]).abs().amax(2) < 0.2
    much = near.float().mean(dim=(2, 3))
    return 20 * torch.cat([much, 0.25 - much.sum(1, keepdim=True) / 4], dim=1)


JUDGE = CropJudge([*COLOURS, "nothing"], 16, classify, "squares by colour")


def scene(first: str, relation: str, second: str, **colours: str) -> Scene:
    objects = [{"name": name, "colour": colours.get(name)} for name in (first, second)]
    return Scene.of({"objects": objects, "relations": [[0, relation, 1]], "background": "plain"})


def figures(pictures: list[Tensor], scenes: list[Scene]) -> dict[str, float]:
    found = scene_figures(pictures, scenes, JUDGE)
    return {name: estimate.value for name, estimate in found.estimates.items()}


def test_what_is_asked_for_is_found() -> None:
    made = [picture(cherry="left", leaf="right"), picture(sea="bottom", leaf="top")] * 10
    wanted = [
        scene("cherry", "left of", "leaf", cherry="red", leaf="green"),
        scene("sea", "below", "leaf", sea="blue"),
    ]
    found = figures(made, wanted * 10)
    assert found.pop("count") == 1 and found.pop("named_by_chance") == 0
    assert found == dict.fromkeys(("named", "both_named", "all_named", "colours", "relations"), 1)


def test_wrong_places_colours_and_missing_objects_are_told_apart() -> None:
    asked = scene("cherry", "left of", "leaf", cherry="blue")
    turned, alone = picture(cherry="right", leaf="left"), picture(cherry="left")
    found = figures([turned] * 10 + [alone] * 10, [asked] * 20)
    assert found["named"] == 0.75 and found["all_named"] == found["count"] == 0.5
    assert found["relations"] == 0 and found["colours"] == 0
    assert figures([picture(cherry="left", leaf="right")] * 10, [asked] * 10)["relations"] == 1


@pytest.mark.parametrize(
    ("word", "first", "second"),
    [
        ("left of", "left", "right"),
        ("right of", "right", "left"),
        ("above", "top", "bottom"),
        ("below", "bottom", "top"),
    ],
)
def test_every_relation_in_the_plane_and_its_opposite(word: str, first: str, second: str) -> None:
    asked = [scene("cherry", word, "leaf")] * 10
    assert figures([picture(cherry=first, leaf=second)] * 10, asked)["relations"] == 1
    assert figures([picture(cherry=second, leaf=first)] * 10, asked)["relations"] == 0


def test_depth_and_unknown_names_are_left_out() -> None:
    made = [picture(cherry="left", leaf="right")] * 10
    assert not {"relations", "count"} & figures(made, [scene("cherry", "in front of", "leaf")] * 10).keys()
    found = figures(made, [scene("cherry", "left of", "unicorn")] * 10)
    assert found["named"] == 1 and "all_named" not in found and "relations" not in found


def test_known_boxes_are_looked_at_alone() -> None:
    """Of a picture whose objects have changed places, the search finds both, and their boxes neither."""
    objects = [
        {"name": "cherry", "box": [6, 22, 26, 42], "colour": "red"},
        {"name": "leaf", "box": [38, 22, 58, 42]},
    ]
    asked = [Scene.of({"objects": objects, "width": SIDE, "height": SIDE})] * 10
    right, turned = picture(cherry="left", leaf="right"), picture(cherry="right", leaf="left")
    for made, named in ((right, 1), (turned, 0)):
        assert scene_figures([made] * 10, asked, JUDGE, searched=False).estimates["named"].value == named
        assert scene_figures([made] * 10, asked, JUDGE).estimates["named"].value == 1
    with pytest.raises(ValueError, match="says no boxes"):
        scene_figures([right], [scene("cherry", "above", "leaf")], JUDGE, searched=False)


def test_windows_cover_the_picture_and_crops_are_of_their_places() -> None:
    all_of_them = windows()
    assert all_of_them.min() == 0 and all_of_them.max() == pytest.approx(1)
    ramp = torch.linspace(-1, 1, 65).unfold(0, 2, 1).mean(1).expand(3, SIDE, SIDE)  # each pixel's own middle
    made = crops(ramp, torch.tensor([[0.0, 0, 1, 1], [0.5, 0.25, 0.75, 0.5]]), 8)
    torch.testing.assert_close(
        made[0, 0, 0], torch.linspace(-1, 1, 9).unfold(0, 2, 1).mean(1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        made[1, 2, 3], torch.linspace(0, 0.5, 9).unfold(0, 2, 1).mean(1), atol=1e-5, rtol=0
    )


def test_a_square_box_of_a_wide_picture_is_square() -> None:
    wide = torch.zeros(3, 32, 64)
    wide[:, :, 32:] = 1.0
    made = crops(wide, torch.tensor([[0.25, 0.0, 0.75, 1.0]]), 8)
    assert made[0, 0, :, :4].abs().max() == 0 and made[0, 0, :, 4:].min() == 1


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"objects": [{"colour": "red"}]},
        {"objects": [], "relations": [[0, "above", 1]]},
        {"objects": [{"name": "a", "box": [1, 2]}], "width": 8, "height": 8},
        {"objects": [{"name": "a", "box": [1, 2, 3, 4]}], "width": 0, "height": 8},
    ],
)
def test_a_record_that_says_no_scene_is_refused_in_one_line(record: dict) -> None:
    with pytest.raises(ValueError, match="^no record of a scene: [^\n]+$"):
        Scene.of(record)


def test_too_few_are_refused() -> None:
    found = scene_figures([picture(cherry="left", leaf="right")], [scene("cherry", "left of", "leaf")], JUDGE)
    assert not found.estimates and "needs at least 10 pictures, not 2" in found.refused["named"]
