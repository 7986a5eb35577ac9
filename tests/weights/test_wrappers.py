"""Checkpoints as programs wrap them: scaled fp8, averages alone, prefixes around all names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import read_component
from inkwash.weights.models.convert import convert
from inkwash.weights.models.single import read_single, write_single
from tests.weights.test_single_files import SMALL, families, random_checkpoint  # noqa: F401

UNET = "model.diffusion_model."
Tensors = dict[str, Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Tensors:
    write_single(random_checkpoint(SMALL["small-sd1"]), tmp_path / "plain.safetensors")
    return load_file(tmp_path / "plain.safetensors")


def unet_of(path: Path) -> Tensors:
    return {f"{UNET}{name}": value for name, value in read_single(path).unet.tensors.items()}


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("per_channel", [False, True], ids=["one scale", "a scale for each channel"])
@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
def test_scaled_fp8_is_weight_times_scale(
    name: str, per_channel: bool, checkpoint: Tensors, tmp_path: Path
) -> None:
    stored, expected = dict(checkpoint), dict(checkpoint)
    for key in [key for key in checkpoint if key.startswith(UNET) and checkpoint[key].ndim == 2]:
        if not key.endswith(".weight"):
            continue
        low = (checkpoint[key] * 100).clamp(-400, 400).to(torch.float8_e4m3fn)
        scale = torch.rand(len(low), 1) + 0.01 if per_channel else torch.tensor(0.01)
        layer = key.removesuffix("weight")
        stored |= {key: low, f"{layer}{name}": scale, f"{layer}input_scale": torch.ones(1)}
        expected[key] = low.float() * scale
    stored[f"{UNET}scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    assert not equal(stored, expected)
    path = tmp_path / "scaled.safetensors"
    save_file(stored, path)
    wanted = {key: value for key, value in expected.items() if key.startswith(UNET)}
    assert equal(unet_of(path), wanted)
    convert(path, tmp_path / "half.safetensors", "single", torch.float16)
    assert equal(load_file(tmp_path / "half.safetensors"), {k: v.half() for k, v in expected.items()})
    convert(path, tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "single")
    assert equal(unet_of(tmp_path / "back.safetensors"), wanted)
    keys = inspect(path)["keys"]
    assert (keys["used"], keys["dropped"], keys["unknown"]) == (
        len(expected),
        len(stored) - len(expected),
        [],
    )


def test_scaled_fp8_in_the_shards_of_a_folder(checkpoint: Tensors, tmp_path: Path) -> None:
    convert(tmp_path / "plain.safetensors", tmp_path / "folder", "diffusers")
    file = tmp_path / "folder/unet/diffusion_pytorch_model.safetensors"
    tensors, name = load_file(file), "time_embedding.linear_1"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    save_file(tensors | {f"{name}.weight_scale": torch.tensor(0.5)}, file)
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "single")
    assert torch.equal(
        unet_of(tmp_path / "back.safetensors")[f"{UNET}time_embed.0.weight"],
        tensors[f"{name}.weight"].float() * 0.5,
    )


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (torch.ones(3), "1 value or 256 are supported"),
        (torch.tensor(float("nan")), "not finite"),
    ],
    ids=["of another size", "not finite"],
)
def test_a_scale_that_does_not_fit_is_refused(
    scale: Tensor, said: str, checkpoint: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(checkpoint | {f"{UNET}time_embed.0.weight_scale": scale}, path)
    with pytest.raises(ModelFileError, match=said):
        read_single(path)


def test_values_that_fp16_cannot_hold_are_not_written(checkpoint: Tensors, tmp_path: Path) -> None:
    checkpoint[f"{UNET}time_embed.0.weight"][0, 0] = 1e6
    save_file(checkpoint, tmp_path / "wide.safetensors")
    with pytest.raises(ModelFileError, match=r"time_embed\.0\.weight.*not finite"):
        convert(tmp_path / "wide.safetensors", tmp_path / "half.safetensors", "single", torch.float16)
    assert not (tmp_path / "half.safetensors").exists()


def averages(tensors: Tensors) -> Tensors:
    return {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}" if name.startswith(UNET) else name: value
        for name, value in tensors.items()
    }


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()}


WRAPPERS: dict[str, Callable[[Tensors], Tensors]] = {
    "averages alone": lambda t: averages(t) | {"model_ema.decay": torch.tensor(0.9)},
    "averages alone in a state_dict": lambda t: prefixed("state_dict.")(averages(t)),
    "model": prefixed("model."),
    "module": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "ema_state_dict": prefixed("ema_state_dict."),
    "model and module": prefixed("model.module."),
    "state_dict and torch.compile": prefixed("state_dict._orig_mod."),
    "a compiled U-Net inside": lambda t: {n.replace(UNET, f"{UNET}_orig_mod."): v for n, v in t.items()},
    "a model and its averages": lambda t: (
        prefixed("model.")(t) | prefixed("ema.")({name: value + 1 for name, value in t.items()})
    ),
    "scalars beside": lambda t: prefixed("model.")(t) | {"epoch": torch.tensor(3)},
}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "ckpt"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_checkpoints_open(wrapper: str, pickled: bool, checkpoint: Tensors, tmp_path: Path) -> None:
    path = tmp_path / ("wrapped.ckpt" if pickled else "wrapped.safetensors")
    wrapped = WRAPPERS[wrapper](checkpoint)
    torch.save(wrapped, path) if pickled else save_file(wrapped, path)
    opened = read_single(path)
    assert equal(unet_of(path), {k: v for k, v in checkpoint.items() if k.startswith(UNET)})
    assert equal(
        dict(opened.autoencoder.tensors),
        dict(read_single(tmp_path / "plain.safetensors").autoencoder.tensors),
    )
    assert inspect(path)["kind"] == "checkpoint"


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model.", "module.", "model.", "state_dict.vae."])
def test_an_autoencoder_behind_a_prefix_opens(prefix: str, checkpoint: Tensors, tmp_path: Path) -> None:
    own = dict(read_single(tmp_path / "plain.safetensors").autoencoder.tensors)
    save_file(prefixed(prefix)(own), tmp_path / "vae.safetensors")
    assert equal(dict(read_component(tmp_path / "vae.safetensors").tensors), own)
    assert inspect(tmp_path / "vae.safetensors")["kind"] == "vae"


@pytest.mark.parametrize(
    "prefix", ["unet.", "model.diffusion_model.", "module.", "model.", "unet._orig_mod."]
)
def test_a_unet_behind_a_prefix_opens(prefix: str, checkpoint: Tensors, tmp_path: Path) -> None:
    own = dict(read_single(tmp_path / "plain.safetensors").unet.tensors)
    save_file(prefixed(prefix)(own), tmp_path / "unet.safetensors")
    assert equal(dict(read_component(tmp_path / "unet.safetensors").tensors), own)
