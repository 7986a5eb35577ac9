"""What `convert` writes is what `load` uses: every family and variant, both layouts, each dtype."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import inkwash
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import DTYPES
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.single import write_single
from tests.weights.test_single_files import SMALL, random_checkpoint

# how many channels the U-Nets of a family see: plain, depth, InstructPix2Pix, inpainting; and dtypes to convert to
VARIANTS = {4: (None, "fp16", "bf16"), 5: (None,), 8: ("fp16",), 9: ("bf16",)}
CASES = [
    (name, channels)
    for name in SMALL
    for channels in VARIANTS
    if channels == 4 or name != "small-sdxl-refiner"
]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


def weights(path: Path) -> dict[str, Tensor]:
    """All weights of the model at a path, as `load` computes with them."""
    model = inkwash.load(path, dtype=torch.float32, prediction="eps")
    networks = {"unet": model.unet, "autoencoder": model.autoencoder}
    networks |= {f"text{i}": text.model for i, text in enumerate(model.text_encoders)}
    return {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def written(family: str, channels: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """The model in both layouts, by the layout that it can be converted to."""
    of = SMALL[family]
    checkpoint = random_checkpoint(replace(of, unet=replace(of.unet, in_channels=channels)))
    write_single(checkpoint, folder / "a.safetensors")
    write_folder(checkpoint, folder / "a")
    yield "diffusers", folder / "a.safetensors"
    yield "single", folder / "a"


@pytest.mark.parametrize(("family", "channels"), CASES)
def test_what_is_converted_is_what_is_loaded(family: str, channels: int, tmp_path: Path) -> None:
    sources = dict(written(family, channels, tmp_path))
    wanted = weights(sources["single"])
    assert wanted.keys() == (other := weights(sources["diffusers"])).keys()
    assert all(torch.equal(wanted[key], other[key]) for key in wanted)
    for layout, source in sources.items():
        for dtype in VARIANTS[channels]:
            target = tmp_path / f"{layout}-{dtype}{'.safetensors' if layout == 'single' else ''}"
            convert(source, target, layout, DTYPES[dtype] if dtype else None)
            loaded = weights(target)
            assert loaded.keys() == wanted.keys()
            for key, value in wanted.items():
                rounded = value.to(DTYPES[dtype]).float() if dtype and value.is_floating_point() else value
                assert torch.equal(loaded[key], rounded), (layout, dtype, key)


@pytest.mark.parametrize("scaled", ["weight_scale", "scale_weight"])
def test_scaled_eight_bit_weights_keep_their_scales(scaled: str, tmp_path: Path) -> None:
    write_single(random_checkpoint(SMALL["small-sd1"]), tmp_path / "a.safetensors")
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "a.safetensors")
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    scale = tensors[key].abs().max() / 448
    tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
    tensors[f"{key.removesuffix('weight')}{scaled}"] = scale
    if scaled == "scale_weight":
        tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    write_tensors(tmp_path / "fp8.safetensors", tensors, {})
    wanted = tensors[key].float() * scale
    found = weights(tmp_path / "fp8.safetensors")
    (ours,) = (
        value
        for name, value in found.items()
        if name.endswith("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    convert(tmp_path / "fp8.safetensors", tmp_path / "folder", "diffusers", torch.float32)
    again = weights(tmp_path / "folder")
    assert again.keys() == found.keys() and all(torch.equal(found[name], again[name]) for name in found)
