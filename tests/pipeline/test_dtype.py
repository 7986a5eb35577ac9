"""Dtypes that models compute in."""

from pathlib import Path

import pytest
import torch

import inkwash
from inkwash.weights import checkpoint
from inkwash.weights.checkpoint import Component, chosen_dtype
from inkwash.weights.scheduler import scheduler_json


@pytest.mark.parametrize(
    ("parameters", "has", "wanted"),
    [
        (199_000_000, {"avx512_bf16"}, torch.float32),
        (200_000_000, {"avx512_bf16"}, torch.bfloat16),
        (200_000_000, {"avx2"}, torch.float32),
    ],
)
def test_auto(parameters: int, has: set[str], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "instructions", lambda: frozenset(has))
    unet = Component(None, {"all": torch.empty(parameters, device="meta")})
    about = checkpoint.Checkpoint(unet, Component(None, {}), (), scheduler_json("eps"), 512, ())  # pyright: ignore
    assert chosen_dtype("auto", "cpu", about) == wanted
    assert chosen_dtype("fp16", "cpu", about) == chosen_dtype(torch.float16, "cpu", about) == torch.float16


def test_by_name(tiny: Path) -> None:
    assert inkwash.load(tiny).dtype == torch.float32
    assert inkwash.load(tiny, dtype="bf16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'half' is not one of auto, fp32, bf16, fp16"):
        inkwash.load(tiny, dtype="half")
