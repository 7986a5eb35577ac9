"""cloneofsimo's LoRA files, against diffusers' and transformers' own modules, walked as the trainer walked them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

import inkwash
from inkwash.adapters.low_rank import attach, read_adapter
from inkwash.files import ModelFileError
from inkwash.pipeline.api import Pipeline
from inkwash.weights.kinds import kind_of


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def layers_of(network: nn.Module, classes: set[str]) -> list[nn.Linear]:
    """Linear layers inside modules of these classes, each once, in the order of the modules."""
    found: dict[int, nn.Linear] = {}
    for ancestor in network.modules():
        if type(ancestor).__name__ in classes:
            found |= {id(m): m for m in ancestor.modules() if isinstance(m, nn.Linear)}
    return list(found.values())


def trained(layers: list[nn.Linear], part: str, seed: int) -> dict[str, Tensor]:
    """A file's tensors for these layers, which are changed by them."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for i, layer in enumerate(layers):
        out, inputs = layer.weight.shape
        up, down = torch.randn(out, 2, generator=random) / 4, torch.randn(2, inputs, generator=random) / 4
        tensors |= {f"{part}:{i}:up": up, f"{part}:{i}:down": down}
        with torch.no_grad():
            layer.weight += up @ down
    return tensors


def test_layers_by_numbers_are_those_of_the_trainer(model: Pipeline, tiny: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny / "unet", local_files_only=True).eval()
    text = CLIPTextModel.from_pretrained(tiny / "text_encoder", local_files_only=True).eval()
    tensors = trained(layers_of(unet, {"CrossAttention", "Attention", "GEGLU"}), "unet", 1)
    tensors |= trained(layers_of(text, {"CLIPAttention"}), "text_encoder", 2)
    width = model.text_encoders[0].model.config.width
    tensors["<s1>"] = torch.randn(width)
    path = tmp_path / "old.safetensors"
    save_file(
        tensors, path, {"unet": json.dumps(["CrossAttention", "Attention", "GEGLU"]), "<s1>": "<embed>"}
    )
    assert kind_of(tensors) == "lora"
    adapter = read_adapter(path, model)
    assert list(adapter.embeddings) == ["<s1>"]
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([7.0]), torch.randn(1, 77, width)
    tokens = torch.randint(0, 100, (1, 77))
    with torch.no_grad(), attach(model, adapter):
        found = model.unet(x, t, context)
        words = model.text_encoders[0].model(tokens, 1, True)[0]
        torch.testing.assert_close(found, unet(x, t, context).sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(words, text(tokens).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_numbers_beyond_the_model_and_shapes_of_none_are_refused(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    pair = lambda i, out: {f"unet:{i}:up": torch.randn(out, 2), f"unet:{i}:down": torch.randn(2, out)}  # noqa: E731
    save_file(pair(9999, 8), path)
    with pytest.raises(ModelFileError, match="unet:9999 is beyond the"):
        read_adapter(path, model)
    save_file(pair(0, 7), path)
    with pytest.raises(ModelFileError, match="are those of no order"):
        read_adapter(path, model)
