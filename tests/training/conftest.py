"""Pictures and networks that several methods are trained with."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from inkwash.models.clip import CLIPVision, CLIPVisionConfig
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for k, colour in enumerate(("red", "green", "blue", "black")):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((4 + k, 4, 24, 24 + k), colour)
        image.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a {colour} disc")
    return folder


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vision tower."""
    config = CLIPVisionConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=16, image_size=32, patch_size=8, projection_dim=12
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("eyes") / "eye"
    write_component(Component(config, CLIPVision(config).state_dict()), path, "diffusers")
    return path
