"""Scenes and the outside judge as files that `inkwash evaluate` reads."""

import json
from pathlib import Path

import torch
from torch import nn

from inkwash.metrics.judges import read_scenes
from recipes.mini.pictures import common_drawings
from recipes.mini.scene_files import head_of, scene_lines


def test_scenes_are_those_of_the_records(tmp_path: Path) -> None:
    one = {"name": "apple", "colour": "red", "box": [8, 0, 64, 128]}
    size = {"width": 128, "height": 128, "relations": []}
    records = [
        {
            "kind": "scene",
            "caption": "a red apple on a green background, noto style",
            "objects": [one],
            **size,
        },
        {"kind": "single", "caption": "an apple, noto style", "objects": [one], **size},
        {"kind": "scene", "caption": "a red apple, noto style", "objects": [one, one], **size},
    ]
    (tmp_path / "scenes.jsonl").write_text(scene_lines(records))
    scenes = read_scenes(tmp_path / "scenes.jsonl")
    assert list(scenes) == [records[0]["caption"], records[2]["caption"]]
    assert [scene.apart for scene in scenes.values()] == [True, False]  # before one colour, or not said
    assert scenes[records[0]["caption"]].objects[0].box == (1 / 16, 0, 0.5, 1)


def test_names_are_in_the_order_of_slugs(tmp_path: Path) -> None:
    drawings = [("b-dog", "dog", True), ("a-cat", "cat", True), ("c", "other", False)]
    listed = [{"slug": slug, "name": name, "common": common} for slug, name, common in drawings]
    (tmp_path / "drawings.json").write_text(json.dumps(listed))
    assert list(common_drawings(tmp_path).items()) == [("a-cat", "cat"), ("b-dog", "dog")]


@torch.no_grad()
def test_the_head_computes_what_it_did() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(
        nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5), nn.GELU(), nn.Dropout(0.4), nn.Linear(5, 3)
    )
    head.train()(torch.randn(50, 6) * 3 + 2)
    x = torch.randn(7, 6)
    made = head_of({f"names.{name}": value for name, value in head.state_dict().items()})
    hidden = nn.functional.gelu(nn.functional.linear(x, made["1.weight"], made["1.bias"]))
    wanted = head.eval()(x)
    torch.testing.assert_close(nn.functional.linear(hidden, made["4.weight"], made["4.bias"]), wanted)
