"""DINOv2 against transformers, through its names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from inkwash.files import ModelFileError
from inkwash.metrics.networks import open_network


@pytest.fixture(scope="module")
def theirs() -> Dinov2Model:
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=518
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_vectors_are_transformers(theirs: Dinov2Model, tmp_path: Path) -> None:
    """At 224 pixels, where the positions of training are resized."""
    theirs.save_pretrained(tmp_path)  # under the names of the hub's files
    network = open_network("dinov2", tmp_path / "model.safetensors")
    pixels = torch.rand(2, 3, 50, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs(network.prepare(pixels)).last_hidden_state[:, 0]
    torch.testing.assert_close(network(pixels).pooled, expected, rtol=1e-4, atol=1e-4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="is not DINOv2's: there is no 'patch_embed.proj.weight'"):
        open_network("dinov2", tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="dinov2 needs --weights"):
        open_network("dinov2")
