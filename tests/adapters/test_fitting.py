"""Whether controls fit a model is told by shapes alone, in the words in which drawing refuses them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.adapters.image_projections import Projection
from inkwash.adapters.ip_adapter import IPAdapter, Layer, attentions
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.style_adapter import StyleAdapter, StyleAdapterConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.control import open_network
from inkwash.serve.questions import misfits
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from tests.adapters.test_control_lora import pair
from tests.adapters.test_lllite import tensors as lllite
from tests.support.small_controls import write_controlnet

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def ip_adapter(width: int) -> Callable[[Pipeline], Tensors]:
    def make(model: Pipeline) -> Tensors:
        layers = {
            str(2 * i + 1): Layer(width, each.to_q.out_features)
            for i, each in enumerate(attentions(model.unet))
        }
        return IPAdapter(Projection(8, width, 2), layers).state_dict()

    return make


def style(context: int) -> Callable[[Pipeline], Tensors]:
    return lambda model: StyleAdapter(StyleAdapterConfig(64, context, 3, 2)).state_dict()


def control_lora(model: Pipeline, surplus: bool = False) -> Tensors:
    return pair(model)[1] | ({"surplus": torch.ones(2)} if surplus else {})


def difference(model: Pipeline) -> Tensors:
    network, _ = pair(model)
    return {f"control_model.{name}": value for name, value in network.state_dict().items()} | {
        "difference": torch.zeros(0)
    }


FITTING = {
    "lllite": lambda model: lllite(8),
    "ip-adapter": ip_adapter(8),
    "style": style(8),
    "control-lora": control_lora,
    "difference": difference,
}
OTHERS = {
    "lllite": lambda model: lllite(16),
    "ip-adapter": ip_adapter(12),
    "style": style(12),
    "control-lora": lambda model: control_lora(model, True),
}


def answer(tiny: Path, path: Path) -> str | None:
    return misfits(str(tiny), {"it": str(path)})["it"]


@pytest.mark.parametrize("kind", FITTING)
def test_what_fits(model: Pipeline, tiny: Path, tmp_path: Path, kind: str) -> None:
    save_file(dict(FITTING[kind](model)), tmp_path / "it.safetensors")  # type: ignore[operator]
    assert open_network(tmp_path / "it.safetensors", model)
    assert answer(tiny, tmp_path / "it.safetensors") is None


@pytest.mark.parametrize("kind", OTHERS)
def test_what_does_not_fit_is_said_as_drawing_would(
    model: Pipeline, tiny: Path, tmp_path: Path, kind: str
) -> None:
    save_file(dict(OTHERS[kind](model)), tmp_path / "it.safetensors")  # type: ignore[operator]
    with pytest.raises(ModelFileError) as error:
        open_network(tmp_path / "it.safetensors", model)
    assert answer(tiny, tmp_path / "it.safetensors") == str(error.value)


def test_t2i_adapters(model: Pipeline, tiny: Path, tmp_path: Path) -> None:
    widths = tuple(model.unet.config.channels * mult for mult in model.unet.config.channel_mult)
    for name, channels in (("fits", widths), ("other", (64, 128))):
        config = T2IAdapterConfig(channels)
        write_component(Component(config, T2IAdapter(config).state_dict()), tmp_path / name, "folder")
    assert answer(tiny, tmp_path / "fits") is None
    assert "is for levels of (64, 128) channels" in (answer(tiny, tmp_path / "other") or "")


@pytest.mark.parametrize("layout", ["single", "folder"])
def test_controlnets_in_files_and_folders(model: Pipeline, tiny: Path, tmp_path: Path, layout: str) -> None:
    for name, context in (("fits", 8), ("other", 12)):
        config = replace(model.unet.config, context_dim=context)
        path = tmp_path / (name if layout == "folder" else f"{name}.safetensors")
        write_controlnet(ControlNet(ControlNetConfig(config)), path, layout)
        why = answer(tiny, path)
        assert why is None if name == "fits" else why and "its context_dim is 12" in why
    (tmp_path / "no.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert answer(tiny, tmp_path / "no.safetensors")
    assert (answer(tiny, Path("canny")) or "").startswith("mini-canny is for")
    assert misfits("mini", {"canny": "canny"}) == {"canny": None}


def test_no_value_is_read(model: Pipeline, tiny: Path, tmp_path: Path) -> None:
    path = write_controlnet(ControlNet(ControlNetConfig(model.unet.config)), tmp_path / "it.safetensors")
    broken = {name: value * float("nan") for name, value in load_file(path).items()}
    save_file(broken, path)
    assert answer(tiny, path) is None
    with pytest.raises(ModelFileError, match="not finite"):
        open_network(path, model)
