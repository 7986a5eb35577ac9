"""The recipe of first stages, classes and pixels, at a toy size, from data to sheets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import drawings
from recipes.mini.drawings import Drawing

TOY = {"steps": 1, "batch_size": 2, "save_every": 1, "warmup": 0, "width": 32, "resolution": 16}


def toy_drawings(folder: Path) -> list[Drawing]:
    """Sixteen of each of two names, the last two of each held out."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (32, 32, 32, 4), dtype=np.uint8)
    return [
        Drawing(k, f"style {k}", name, name, (), True, "heldout" if k >= 28 else "train", pixels[k])
        for k, name in enumerate(("cat", "clock") * 16)
    ]


def projected(images: list[Image.Image]) -> torch.Tensor:
    """Features (N, 4) that need no network: a random projection of the pixels."""
    pixels = torch.stack(
        [torch.tensor(np.asarray(one.resize((8, 8)), np.float32)).flatten() for one in images]
    )
    return pixels @ torch.randn(192, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(drawings, "load_drawings", toy_drawings)
    monkeypatch.setattr(drawings, "kinds_of", lambda mini: {"cat": "mammal", "clock": "clock"})
    monkeypatch.setattr(drawings, "features_of", projected)
    monkeypatch.setattr(drawings, "STEPS", (1, 2))
    monkeypatch.setattr(drawings, "BATCH", 12)
    small = {"vq-f4": {"perceptual": "none", "codebook_size": 16}, "class": {"channel_mult": (1, 1)},
             "pixels": {"channel_mult": (1,)}}  # fmt: skip
    runs = {
        name: (method, options | TOY | small.get(name, {}))
        for name, (method, options) in drawings.RUNS.items()
    }
    monkeypatch.setattr(drawings, "RUNS", {name: runs[name] for name in small})
    monkeypatch.setattr(drawings, "STAGES", ["vq-f4"])
    return tmp_path


def test_all(toy: Path) -> None:
    drawings.everything(build=toy / "build", mini=toy, num=24, out=toy)
    figures = json.loads((toy / "build/figures.json").read_text())
    assert figures.keys() == {"vq-f4", "class", "pixels"}
