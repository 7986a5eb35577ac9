"""The same random weights in our upscalers and in spandrel's give the same picture, under every dialect's names."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.models.rrdb import RRDBConfig
from inkwash.weights import shapes
from inkwash.weights.checkpoint import build
from inkwash.weights.names.keymap import translate
from inkwash.weights.upscalers import TRUNK, described, old_names, read_upscaler
from tests.support.upscalers import CONFIGS, network, spandrel

pytestmark = pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel is not installed")


def pixels(config: Any) -> Tensor:
    """Pictures of three windows by five, of those that have windows."""
    side = getattr(config, "window", 8)
    return torch.rand(2, 3, 3 * side, 5 * side, generator=torch.Generator().manual_seed(1))


def as_published(config: Any, ours: nn.Module) -> dict[str, Tensor]:
    """With what SwinIR's files hold besides: places of offsets, and the masks of pictures of two windows a side."""
    tensors = ours.state_dict()
    for prefix, module in ours.named_modules():
        if prefix.endswith(".attn"):
            tensors[f"{prefix}.relative_position_index"] = module.get_buffer("offsets")
        if prefix.endswith(".blocks.1"):
            tensors[f"{prefix}.attn_mask"] = torch.zeros(4, config.window**2, config.window**2)
    return tensors


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_picture_as_spandrels(name: str) -> None:
    config = CONFIGS[name]
    ours = network(config)
    # of ESRGAN+ spandrel knows the old names alone
    plus = getattr(config, "plus", False)
    theirs = spandrel(old(ours.state_dict(), config) if plus else as_published(config, ours))
    seen = pixels(config)
    made, wanted = ours(seen), theirs(seen)
    assert made.shape == (2, 3, config.scale * seen.shape[2], config.scale * seen.shape[3])
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_files_say_their_config_and_every_tensor_is_used(tmp_path: Path, name: str, suffix: str) -> None:
    config, path, ours = CONFIGS[name], tmp_path / f"x.{suffix}", network(CONFIGS[name])
    tensors, stored = ours.state_dict(), as_published(config, ours)
    if suffix == "pth":
        torch.save({"params_ema": stored, "params": {key: value + 1 for key, value in stored.items()}}, path)
    else:
        save_file(stored, path)
    found, factor = read_upscaler(path)
    assert (found.config, factor) == (config, config.scale)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in tensors.items())
    assert f"x{config.scale}" in described(config)


RRDBS = {name: config for name, config in CONFIGS.items() if isinstance(config, RRDBConfig)}


def old(tensors: dict[str, Tensor], config: RRDBConfig) -> dict[str, Tensor]:
    """ESRGAN's first names, by their own rule: numbers of layers in a chain with activations and doublings."""
    last = 4 + 3 * config.num_doublings
    places = {"conv_first": "model.0", "conv_body": f"model.1.sub.{config.num_blocks}"}
    places |= {"conv_hr": f"model.{last - 2}", "conv_last": f"model.{last}"}
    places |= {f"conv_up{k}": f"model.{3 * k}" for k in range(1, 4)}
    named = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("body."):
            _, n, rdb, conv = layer.split(".")
            inside = conv if conv == "conv1x1" else f"{conv}.0"
            named[f"model.1.sub.{n}.{rdb.upper()}.{inside}.{kind}"] = value
        else:
            named[f"{places[layer]}.{kind}"] = value
    return named


@torch.no_grad()
@pytest.mark.parametrize("name", RRDBS)
def test_esrgans_and_bsrgans_own_names(tmp_path: Path, name: str) -> None:
    config, ours = RRDBS[name], network(RRDBS[name])
    tensors, seen = ours.state_dict(), pixels(RRDBS[name])
    for forms in (old(tensors, config), translate(tensors, TRUNK)):
        save_file(forms, tmp_path / "x.safetensors")
        found, _ = read_upscaler(tmp_path / "x.safetensors")
        assert found.config == config and found.tensors.keys() == tensors.keys()
        theirs = spandrel(old(tensors, config) if config.plus else forms)
        torch.testing.assert_close(build(found)(seen), theirs(seen), atol=2e-5, rtol=1e-4)
    assert (
        translate(tensors, old_names(shapes.of(old(tensors, config)))).keys() == old(tensors, config).keys()
    )


@torch.no_grad()
@pytest.mark.parametrize("plus", [False, True])
def test_networks_for_three_times_the_size_are_known_by_their_names(tmp_path: Path, plus: bool) -> None:
    """Their tensors are those of one for twice the size."""
    config = RRDBConfig(8, 32, 2, 1, plus=plus, step=3)
    ours = network(config)
    forms, seen = old(ours.state_dict(), config), pixels(config)
    spandrel(forms)  # which takes it for the other one, and lets its classes be imported
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    theirs = RRDBNet(num_filters=8, num_blocks=2, scale=3, plus=plus).eval()
    theirs.load_state_dict(forms)
    for name, factor in (("3x_lines", 3), ("lines-x3", 3), ("2x_lines", 2), ("13x", 2)):
        path = tmp_path / f"{name}.safetensors"
        save_file(forms, path)
        found, said = read_upscaler(path)
        assert said == found.config.scale == factor
        if factor == 3:
            torch.testing.assert_close(build(found)(seen), theirs(seen), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("esrgan x4", {"body.1.rdb2.conv3.weight": None}, "body.1.rdb2.conv3.weight"),
        ("esrgan x4", {"body.0.rdb1.conv1x1.weight": torch.ones(32, 8, 1, 1)}, "lacks .*conv1x1"),
        ("esrgan x4", {"conv_first.weight": torch.ones(8, 5, 3, 3)}, "no factor"),
        ("compact x4", {"body.8.weight": torch.ones(50, 8, 3, 3)}, "no factor"),
        ("compact x4", {"body.1.weight": torch.ones(8, 8, 3, 3)}, "body.1.weight"),
        ("swinir real x4", {"absolute_pos_embed": torch.ones(1, 4, 24)}, "absolute_pos_embed"),
        ("swinir real x4", {"conv_hr.bias": torch.full((64,), torch.nan)}, "not finite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, change: dict[str, Any], said: str) -> None:
    tensors = network(CONFIGS[name]).state_dict() | change
    save_file({key: value for key, value in tensors.items() if value is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=said):
        read_upscaler(tmp_path / "x.safetensors")


def test_another_file_is_no_upscaler(tmp_path: Path) -> None:
    save_file({"lstm.weight": torch.ones(3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="of the kind unknown, and no upscaler"):
        read_upscaler(tmp_path / "x.safetensors")
