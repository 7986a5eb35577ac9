"""Control-LoRAs draw as the ControlNets do whose weights they change the model's own to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import inkwash
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from tests.support.small_controls import picture, write_controlnet
from tests.support.tiny_models import drawn_at_random


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def pair(model: Pipeline) -> tuple[ControlNet, dict[str, torch.Tensor]]:
    """A ControlNet whose weights are of rank 2 away from the model's, and its Control-LoRA."""
    network, base = drawn_at_random(ControlNet(ControlNetConfig(model.unet.config))), model.unet.state_dict()
    random, lora = torch.Generator().manual_seed(3), {"lora_controlnet": torch.zeros(())}
    whole = network.state_dict()
    for name, value in whole.items():
        path = name.removesuffix(".weight")
        if name in base and value.ndim > 1:
            up, down = (
                torch.randn(shape, generator=random) * 0.1
                for shape in ((len(value), 2), (2, *value.shape[1:]))
            )
            lora |= {f"{path}.up": up, f"{path}.down": down}
            whole[name] = base[name] + torch.tensordot(up, down, dims=1)
        elif name in base and name.endswith(".bias") and "0.0" in name:
            whole[name] = base[name]  # not in the file: the model's own
        else:
            lora[name] = value.clone()
    network.load_state_dict(whole)
    return network, lora


def draw(model: Pipeline, path: Path) -> Image.Image:
    return model.text_to_image("a", controls=[Control(file=path, image=picture())], steps=3)[0]


def test_it_is_the_network_that_it_makes(model: Pipeline, tmp_path: Path) -> None:
    network, lora = pair(model)
    save_file(lora, tmp_path / "lora.safetensors")
    a, b = (
        draw(model, tmp_path / "lora.safetensors"),
        draw(model, write_controlnet(network, tmp_path / "net.safetensors")),
    )
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert a.tobytes() != model.text_to_image("a", steps=3)[0].tobytes()


def test_tensors_that_do_not_fit_or_have_no_place(model: Pipeline, tmp_path: Path) -> None:
    _, lora = pair(model)
    path = "time_embed.0"
    for change, message in (
        ({f"{path}.up": torch.ones(3, 2)}, f"is for another model: {path} does not fit"),
        ({"other.weight": torch.ones(1)}, "a tensor that nothing takes: other.weight"),
    ):
        save_file(lora | change, tmp_path / "bad.safetensors")
        with pytest.raises(ModelFileError, match=message):
            draw(model, tmp_path / "bad.safetensors")
