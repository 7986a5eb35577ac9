"""Figures of what a model draws while it learns: those of the metrics, of the averaged weights, in log and plot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inkwash.metrics.frechet import frechet_distance
from inkwash.metrics.inception_score import inception_score
from inkwash.metrics.networks import FeatureNetwork, Features, Identity
from inkwash.pipeline.images import to_pixels
from inkwash.training import run as runs
from inkwash.training.ema import EMA
from inkwash.training.judging import Judge, averaged
from inkwash.training.run import trained


class Means(nn.Module):
    """Features of 3 colours and 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = x.mean((2, 3))
        return pooled, self.classes(pooled)


def network() -> FeatureNetwork:
    torch.manual_seed(0)
    return FeatureNetwork(Identity("means", "0", "none"), Means(), lambda pixels: pixels, Features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 coloured squares, of the shape that is trained on and of others."""
    place, random = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for k in range(120):
        size = (32, 32) if k % 2 else (64, 32)
        Image.new("RGB", size, tuple(random.integers(0, 255, 3).tolist())).save(place / f"{k:03d}.png")
    return place


def test_figures_are_the_metrics_own(folder: Path) -> None:
    judge, random = Judge(network(), folder, 130, (32, 32)), np.random.default_rng(1)
    pictures = [Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(130)]
    asked: list[int] = []

    def draw(seeds):
        asked.extend(seeds)
        return [pictures[seed] for seed in seeds]

    figures = judge(draw)
    assert asked == list(range(130))
    real = network()(torch.cat([to_pixels(Image.open(p).resize((32, 32))) for p in sorted(folder.iterdir())]))
    seen = network()(torch.cat([to_pixels(one) for one in pictures]))
    assert seen.logits is not None
    assert figures["fid"] == pytest.approx(frechet_distance(seen.pooled, real.pooled), rel=1e-4)
    assert figures["inception_score"] == pytest.approx(inception_score(seen.logits).value, rel=1e-6)
    paths = sorted(folder.iterdir())
    same = Judge(network(), folder, 120, (32, 32))(
        lambda seeds: [Image.open(paths[k]).resize((32, 32)) for k in seeds]
    )
    assert same["fid"] == pytest.approx(0, abs=1e-6)


def test_averages_take_the_weights_place_and_leave_them() -> None:
    layer = nn.Linear(2, 2)
    ema = EMA(layer, 0.9)
    own = layer.weight.detach().clone()
    ema.average["weight"].add_(1)
    with averaged(layer, ema):
        torch.testing.assert_close(layer.weight.detach(), own + 1)
    assert torch.equal(layer.weight.detach(), own)


def test_a_run_logs_and_plots_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at steps that are not logged otherwise; the run itself is the same without."""
    monkeypatch.setattr(runs, "open_network", lambda *given: network())
    own = {"design": "ddpm-cifar10", "width": 32, "data": str(folder), "resolution": 32}
    own |= {"buckets": False, "steps": 4, "log_every": 3, "ema": 0.5, "lr": 1e-3, "sample_steps": 2}
    own["channel_mult"] = (1,)
    figures = {"figures_every": 2, "figures_pictures": 4}
    trained("unconditional", **own, **figures, output=str(tmp_path / "a/run"))
    trained("unconditional", **own, output=str(tmp_path / "b/run"))
    lines = [json.loads(line) for line in (tmp_path / "a/run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("fid", -1) > 0] == [2, 4]
    assert (tmp_path / "a/run/figures.png").exists() and not (tmp_path / "b/run/figures.png").exists()
    states = [(tmp_path / side / "run/state.safetensors").read_bytes() for side in "ab"]
    assert states[0] == states[1]


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figures_of .* has 0 pictures"):
        Judge(network(), tmp_path, 4, (8, 8))
