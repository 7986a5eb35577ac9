"""Checkpoints that lack networks: opened with parts from other files, and otherwise refused by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.weights.checkpoint import Component, build
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import read_component, write_component
from inkwash.weights.models.convert import convert, read_checkpoint
from inkwash.weights.models.parts import with_part
from inkwash.weights.models.single import read_single, write_single
from tests.models.test_unet import randomise
from tests.weights.test_single_files import SMALL, families, random_checkpoint  # noqa: F401

VAE, TEXT, UNET = "first_stage_model.", "cond_stage_model.transformer.", "model.diffusion_model."
Tensors = dict[str, Tensor]


@pytest.fixture
def whole(tmp_path: Path) -> Tensors:
    write_single(random_checkpoint(SMALL["small-sd1"]), tmp_path / "whole.safetensors")
    return load_file(tmp_path / "whole.safetensors")


def split(tensors: Tensors, prefix: str, path: Path) -> Tensors:
    """Write the tensors behind a prefix to a file of their own, and return the others."""
    save_file({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, path)
    return {name: value for name, value in tensors.items() if not name.startswith(prefix)}


@pytest.mark.parametrize("lacking", [[VAE], [TEXT], [VAE, TEXT]], ids=" and ".join)
def test_what_a_checkpoint_lacks_comes_from_parts(lacking: list[str], whole: Tensors, tmp_path: Path) -> None:
    rest, parts = whole, []
    for prefix in lacking:
        parts.append(tmp_path / f"{len(parts)}.safetensors")
        rest = split(rest, prefix, parts[-1])
    save_file(rest, tmp_path / "rest.safetensors")
    a, b = (
        read_checkpoint(tmp_path / "rest.safetensors", parts=parts),
        read_single(tmp_path / "whole.safetensors"),
    )
    assert len(a.networks) == len(b.networks)
    for mine, theirs in zip(a.networks, b.networks, strict=True):
        assert mine.tensors.keys() == theirs.tensors.keys()
        assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (VAE, "no autoencoder; give"),
        (TEXT, "no text encoder 64 wide; give"),
        ("", "no autoencoder and no text"),
    ],
    ids=["autoencoder", "text encoder", "both"],
)
def test_what_is_missing_is_named(lacking: str, said: str, whole: Tensors, tmp_path: Path) -> None:
    lost = (lacking,) if lacking else (VAE, TEXT)
    rest = {name: value for name, value in whole.items() if not name.startswith(lost)}
    path = tmp_path / "rest.safetensors"
    save_file(rest, path)
    with pytest.raises(ModelFileError, match=f"{said}.*--part FILE"):
        read_checkpoint(path)
    if lacking:  # a U-Net alone is a part, which is converted as one
        assert inspect(path)["missing"] and said.split("no ")[1].split(";")[0] in inspect(path)["missing"][0]
        with pytest.raises(ModelFileError, match=f"{said}.*--part FILE"):
            convert(path, tmp_path / "out", "diffusers")


def test_inspect_names_what_no_network_takes_and_what_is_missing(whole: Tensors, tmp_path: Path) -> None:
    del whole[f"{UNET}time_embed.0.bias"]
    save_file(whole | {f"{UNET}surplus.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    report = inspect(tmp_path / "other.safetensors")
    assert report["keys"]["unknown"] == [f"{UNET}surplus.weight"]
    assert report["keys"]["used"] == len(whole)
    assert report["missing"] == [f"{UNET}time_embed.0.bias"]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[TinyAutoencoder, Path, Path]:
    """A tiny autoencoder, and the files of its halves under TAESD's own names."""
    net = TinyAutoencoder(TinyAutoencoderConfig(channels=8)).eval()
    randomise(net)
    paths = []
    for half in ("encoder", "decoder"):
        paths.append(tmp_path / f"taesd_{half}.pth")
        torch.save(getattr(net, half).state_dict(), paths[-1])
    return net, *paths


@torch.no_grad()
def test_the_halves_of_taesd_open_alone(tiny: tuple[TinyAutoencoder, Path, Path]) -> None:
    net, encoder, decoder = tiny
    pixels, latent = torch.rand(1, 3, 16, 16), torch.rand(1, 4, 2, 2)
    assert inspect(encoder)["kind"] == inspect(decoder)["kind"] == "tiny-vae"
    encodes, decodes = build(read_component(encoder)), build(read_component(decoder))
    assert torch.allclose(encodes.encode(pixels).mean, net.encode(pixels).mean, atol=1e-5)
    assert torch.allclose(decodes.decode(latent), net.decode(latent), atol=1e-5)
    with pytest.raises(ValueError, match="has no encoder; give its file too, with --part"):
        decodes.encode(pixels)
    with pytest.raises(ValueError, match="has no decoder; give its file too, with --part"):
        encodes.decode(latent)


def test_a_half_of_taesd_is_written_as_a_single_file_alone(
    tiny: tuple[TinyAutoencoder, Path, Path], tmp_path: Path
) -> None:
    net, _, decoder = tiny
    convert(decoder, tmp_path / "decoder.safetensors", "single")
    again = read_component(tmp_path / "decoder.safetensors").tensors
    assert again.keys() == {f"decoder.{name}" for name in net.decoder.state_dict()}
    with pytest.raises(ModelFileError, match="decoder alone; use --layout single"):
        convert(decoder, tmp_path / "folder", "diffusers")


def test_two_halves_are_one_autoencoder(tiny: tuple[TinyAutoencoder, Path, Path]) -> None:
    net, encoder, decoder = tiny
    base = random_checkpoint(SMALL["small-sd1"])
    whole_size = replace(base.autoencoder.config, channel_mult=(1, 1, 1, 1))
    made = replace(base, autoencoder=Component(whole_size, base.autoencoder.tensors))
    for file in (decoder, encoder):
        made = with_part(made, read_component(file))
    own, joined = net.state_dict(), made.autoencoder.tensors
    assert joined.keys() == own.keys() and all(torch.equal(joined[name], own[name]) for name in own)


@pytest.mark.parametrize("layout", ["single", "diffusers"])
def test_an_encoder_or_a_decoder_alone_takes_its_place(layout: str, whole: Tensors, tmp_path: Path) -> None:
    """Under our names, and under diffusers' own."""
    path = tmp_path / "whole.safetensors"
    own = read_single(path).autoencoder
    other = Component(own.config, {name: value + 1 for name, value in own.tensors.items()})
    write_component(other, tmp_path / layout, layout)
    file = (
        tmp_path / layout / "diffusion_pytorch_model.safetensors"
        if layout == "diffusers"
        else tmp_path / layout
    )
    halves = {}
    for side, quant in (("encoder", "quant_conv"), ("decoder", "post_quant_conv")):
        names = {n: t for n, t in load_file(file).items() if f"{side}." in n or n.split(".")[-2] == quant}
        halves[side] = tmp_path / f"{side}.safetensors"
        save_file(names, halves[side])
        assert inspect(halves[side])["kind"] == "vae"
        with pytest.raises(ModelFileError, match=f"{side} alone"):
            convert(halves[side], tmp_path / "out", "single")
    found = read_checkpoint(path, parts=[halves["decoder"]]).autoencoder.tensors
    for name, value in own.tensors.items():
        replaced = name.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(found[name], value + 1 if replaced else value), name
    both = read_checkpoint(path, parts=list(halves.values())).autoencoder
    assert all(torch.equal(both.tensors[name], value) for name, value in other.tensors.items())
    build(both)


def test_averages_alone_open_with_and_without_ema(whole: Tensors, tmp_path: Path) -> None:
    averages = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}" if name.startswith(UNET) else name: value
        for name, value in whole.items()
    }
    path = tmp_path / "averages.safetensors"
    save_file(averages, path)
    plain, ema = (read_checkpoint(path, ema=asked).unet.tensors for asked in (False, True))
    assert plain.keys() == ema.keys()
    assert all(torch.equal(plain[name], ema[name]) for name in plain)
    assert torch.equal(plain["time_embed.0.bias"], whole[f"{UNET}time_embed.0.bias"])
