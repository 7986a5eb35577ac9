"""The recipe's judge on crops of scenes."""

import json
from pathlib import Path

import pytest
import torch

from recipes.mini.classifier import Classifier
from recipes.mini.parts import common_names
from recipes.mini.recipe import STYLES
from recipes.mini.scenes import crop_judge, scene_figures

SLUGS = ("zebra", "red-apple", "taxi")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    drawings = [{"slug": slug, "name": slug.replace("-", " "), "common": slug != "taxi"} for slug in SLUGS]
    (tmp_path / "drawings.json").write_text(json.dumps(drawings * 2))
    return tmp_path


def test_the_judges_names_are_in_the_order_of_its_classes(data: Path) -> None:
    names = crop_judge(Classifier(2, len(STYLES), 8), data).names
    assert [name.replace(" ", "-") for name in names] == common_names(data) == ["red-apple", "zebra"]


def test_a_judge_that_always_says_the_same_names_that_alone(data: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(2, len(STYLES), 8).eval()
    classifier.names.bias.data = torch.tensor([0.0, 50.0])
    objects = [{"name": name, "colour": None, "box": [0, 0, 9, 9]} for name in ("zebra", "red apple")]
    records = [
        {"objects": objects, "relations": [[0, "above", 1]], "width": 32, "height": 32, "caption": ""}
    ] * 10
    figures = scene_figures(torch.rand(10, 3, 32, 32) * 2 - 1, records, crop_judge(classifier, data))
    assert figures == {"named": 0.5, "both_named": 0.0, "all_named": 0.0}
