"""Tiny checkpoints in single files: a, b and c of one shape."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inkwash.weights.models.convert import convert


@pytest.fixture(scope="session")
def checkpoints(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one description; a in float16, b and c in float32, all with other weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    convert(tiny, folder / "first.safetensors", "single")
    from safetensors import safe_open

    with safe_open(folder / "first.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors, random, made = load_file(folder / "first.safetensors"), torch.Generator().manual_seed(3), {}
    for name, dtype in (("a", torch.float16), ("b", torch.float32), ("c", torch.float32)):
        other = {
            key: (value + 0.1 * torch.randn(value.shape, generator=random)).to(dtype)
            for key, value in tensors.items()
        }
        made[name] = folder / f"{name}.safetensors"
        save_file(other, made[name], metadata)
    return made
