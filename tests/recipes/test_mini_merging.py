"""Figures along alpha: whose names are drawn, what is compared, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inkwash.weights.models.convert import convert
from recipes.mini import merging
from recipes.mini.classifier import Judge
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import STYLES

NUM = 60


class Bright(Judge):
    """Knows the first name, and the first style by the brightness of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def features(self, pixels: Tensor) -> list[Tensor]:
        return [pixels]

    def embed(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        names = torch.zeros(len(pixels), NUM)
        names[:, 0] = 1
        return names, torch.stack(
            [pixels.mean((1, 2, 3)), *[torch.zeros(len(pixels))] * (len(STYLES) - 1)], dim=1
        )


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drawings of 60 names in two styles, the second one's all darker."""
    (tmp_path / "data").mkdir()
    listed = [{"slug": f"s{i:02}", "name": f"thing {i}", "common": True} for i in range(NUM)]
    (tmp_path / "data" / "drawings.json").write_text(json.dumps(listed))
    random = np.random.default_rng(0)
    records, images = [], []
    for style, bright in ((STYLES[0], 120), (STYLES[1], 0)):
        for each in listed:
            records.append({**each, "kind": "single", "style": style, "caption": each["name"]})
            images.append(random.integers(0, 100, (32, 32, 3)) + bright)
    pictures = Pictures(np.array(images, np.uint8), records)
    empty = Pictures(np.zeros((0, 32, 32, 3), np.uint8), [])
    monkeypatch.setattr(merging, "load_pictures", lambda data, split: pictures if split == "train" else empty)
    monkeypatch.setattr(merging, "DRAWN", 50)
    monkeypatch.setattr(merging.outside, "load", lambda build, num: Bright())
    return tmp_path


def test_what_is_learnt_is_not_drawn(build: Path) -> None:
    names = merging.shuffled_names(build / "data")
    assert {each.number for each in names} == set(range(NUM))
    assert [each.number for each in names] != list(range(NUM))
    merging.drawings(build / "learnt", build=build)
    learnt = {path.read_text().strip() for path in (build / "learnt").glob("*.txt")}
    assert learnt == {f"a {each.name}" for each in names[50:]}
    first = next(iter(sorted((build / "learnt").glob("*.png"))))
    assert np.asarray(Image.open(first)).mean() > 120


def test_figures_along_alpha_are_written(
    build: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(merging, "ALPHAS", (0.0, 1.0))
    convert(tiny, tmp_path / "tuned.safetensors", "single")
    places = {
        name: tmp_path / f"out.{end}"
        for name, end in (("figures", "json"), ("sheet", "png"), ("plot", "svg"))
    }
    merging.measure(
        tmp_path / "tuned.safetensors",
        model=str(tiny),
        style=STYLES[0],
        steps=1,
        dtype="fp32",
        build=build,
        **places,
    )
    found = json.loads(places["figures"].read_text())
    assert (found["pictures"], found["real"]["pictures"], found["real"]["style"]) == (50, 50, 1)
    first, last = found["along_alpha"]
    assert {k: v for k, v in first.items() if k != "alpha"} == {k: v for k, v in last.items() if k != "alpha"}
    assert first["name"] < 0.03  # one of fifty at most has the first name
    assert first["kid_interval"][0] <= first["kid"] <= first["kid_interval"][1]
    assert Image.open(places["sheet"]).width > 2 * 32
    assert places["plot"].read_text().count("<circle") == 8


def test_distances_and_shares_are_those_of_the_pictures(build: Path) -> None:
    names = merging.shuffled_names(build / "data")[:50]
    (real, numbers), (other, _) = (
        merging.real_drawings(build / "data", style, names) for style in STYLES[:2]
    )
    assert (len(real), len(other)) == (50, 50)
    assert sorted(numbers.tolist()) == sorted(each.number for each in names)
    judge = Bright()
    wanted = merging.embedded(judge, real)
    same, apart = (
        merging.recognised(judge, pixels, numbers, STYLES[0]) | merging.distances(judge, pixels, wanted)
        for pixels in (real, other)
    )
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert (same["style"], apart["style"]) == (1, 0)
    assert apart["frechet_distance"] > 0.1
    rows = merging.table([{"alpha": 0.5, **same}], {"name": 0.5, "style": 1.0}).splitlines()[-2:]
    assert rows[0].startswith("| 0.5 | ")
    assert rows[1] == "| real drawings | 50.0% | 100.0% | | |"
