"""The families as values: their sizes are the published ones, and their shapes say which they are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.clip import CLIPText
from inkwash.models.unet import UNet
from inkwash.weights.detect import family_of
from inkwash.weights.families import FAMILIES, Family
from inkwash.weights.files import ModelFileError
from inkwash.weights.shapes import autoencoder_config, clip_text_config, of, unet_config

# parameters of the U-Net, the autoencoder and the text encoders, as published
PUBLISHED = {
    "sd1": (859_520_964, 83_653_863, [123_060_480]),
    "sd2": (865_910_724, 83_653_863, [354_032_640]),
    "sdxl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
    "sdxl-refiner": (2_259_526_660, 83_653_863, [694_659_840]),
    "ssd-1b": (1_331_334_404, 83_653_863, [123_060_480, 694_659_840]),
    "vega": (745_225_604, 83_653_863, [123_060_480, 694_659_840]),
    "x4-upscaler": (473_398_020, 55_325_927, [354_032_640]),
}


def built(family: Family) -> tuple[UNet, AutoencoderKL, list[CLIPText]]:
    with torch.device("meta"):
        texts = [CLIPText(tower.config) for tower in family.text]
        return UNet(family.unet), AutoencoderKL(family.autoencoder), texts


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    unet, autoencoder, texts = built(FAMILIES[name])
    found = num_parameters(unet), num_parameters(autoencoder), [num_parameters(text) for text in texts]
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_say_the_config(name: str) -> None:
    family = FAMILIES[name]
    unet, autoencoder, texts = built(family)
    assert unet_config(of(unet.state_dict())) == family.unet
    scale = family.autoencoder.scale_factor
    assert autoencoder_config(of(autoencoder.state_dict()), scale) == family.autoencoder
    for tower, text in zip(family.text, texts, strict=True):
        assert clip_text_config(of(text.state_dict()), tower.config.activation) == tower.config


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_says_its_family(name: str) -> None:
    family = FAMILIES[name]
    assert family_of(family.unet) == (family, "base")


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("channels, variant", [(5, "depth"), (8, "instruct-pix2pix"), (9, "inpainting")])
def test_input_channels_say_the_variant(name: str, channels: int, variant: str) -> None:
    family = FAMILIES[name]
    assert family_of(replace(family.unet, in_channels=channels)) == (family, variant)


def test_another_network_is_refused_with_its_figures() -> None:
    with pytest.raises(ModelFileError, match="128 channels"):
        family_of(replace(FAMILIES["sd1"].unet, channels=128))
    with pytest.raises(ModelFileError, match="6 input channels"):
        family_of(replace(FAMILIES["sd1"].unet, in_channels=6))


@pytest.mark.parametrize(
    "gone",
    ["input_blocks.0.0.weight", "out.2.weight", "input_blocks.4.0.in_layers.2.weight", "output_blocks.3."],
)
def test_what_is_missing_is_named(gone: str) -> None:
    shapes = of(built(FAMILIES["sd1"])[0].state_dict())
    with pytest.raises(ModelFileError, match=r"is missing|there are \d+ output_blocks"):
        unet_config({name: shape for name, shape in shapes.items() if not name.startswith(gone)})
