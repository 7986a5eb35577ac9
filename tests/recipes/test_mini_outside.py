"""The second judge learns names and styles from what a network of photographs sees, and is read back as it was."""

from pathlib import Path

import pytest
import torch

from inkwash.metrics.networks import FeatureNetwork, Identity, resized
from inkwash.models.efficientnet import EfficientNetLite0, without_norms
from recipes.mini import evaluate as measures
from recipes.mini import outside, parts
from recipes.mini.pictures import load_pictures
from tests.recipes.test_mini_world import prepare, write


@pytest.fixture(autouse=True)
def random_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(weights: Path | None = None) -> FeatureNetwork:
        torch.manual_seed(0)
        trunk = without_norms(EfficientNetLite0().eval())
        return FeatureNetwork(Identity("random", "0", ""), trunk, lambda pixels: resized(pixels, 64))

    monkeypatch.setattr(outside, "efficientnet_lite0", network)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    prepare(tmp_path / "data")
    for split in ("train", "heldout"):
        write(tmp_path / "data", split, 0)
    return tmp_path


def test_it_learns_and_is_read_back(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, names = load_pictures(build / "data", "train"), parts.common_names(build / "data")
    monkeypatch.setattr(outside, "BATCH", 4)
    judge = outside.train(build, pictures, names, copies=2)
    singles = [i for i, r in enumerate(pictures.records) if r["kind"] == "single" and r["slug"] in names]
    records = [pictures.records[i] for i in singles]
    pixels = pictures.pixels(torch.tensor(singles))
    wanted = torch.tensor([names.index(r["slug"]) for r in records])
    styles = torch.tensor([outside.STYLES.index(r["style"]) for r in records])
    figures = measures.recognition(judge, pixels, wanted, styles)
    assert figures["style_top1"] > 0.5, figures  # of five; a network that has learnt nothing can't tell names
    again = parts.load_judge(build, "outside")
    with torch.inference_mode():
        for one, other in zip(judge(pixels), again(pixels), strict=True):
            torch.testing.assert_close(one, other)
        assert again.embed(pixels).shape == (len(pixels), 1280)


def test_a_judge_that_was_not_trained_is_named(build: Path) -> None:
    with pytest.raises(FileNotFoundError, match="classifier outside"):
        parts.load_judge(build, "outside")
