"""The families as values: their sizes are the published ones, and their shapes say which they are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inkwash.files import ModelFileError
from inkwash.models.bert import BERTConfig
from inkwash.weights.checkpoint import network_of
from inkwash.weights.detect import family_of
from inkwash.weights.families import FAMILIES
from inkwash.weights.first_stages import FIRST_STAGES
from inkwash.weights.shapes import (
    autoencoder_config,
    bert_config,
    class_config,
    clip_text_config,
    of,
    picture_config,
    semantic_config,
    unet_config,
)

# parameters of the U-Net, the autoencoder and the text encoders, as published. Of latent diffusion, the paper's tables
# have millions: 274 and 294 (12), 395 and 400 (10, 11), 387 (6), 215 (15); and 1.45 billion are 872, BERT's 543 and the
# 39 of the head that BERT was trained with. Ho et al. 2020 have 35.7 and 114. Stable unCLIP has two linear layers more than
# SD2, and beside it CLIP's picture towers, of 304.0 and 632.1 millions, with two statistics of their vectors.
PUBLISHED = {
    "sd1": (859_520_964, 83_653_863, [123_060_480]),
    "sd2": (865_910_724, 83_653_863, [354_032_640]),
    "sdxl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
    "sdxl-refiner": (2_259_526_660, 83_653_863, [694_659_840]),
    "ssd-1b": (1_331_334_404, 83_653_863, [123_060_480, 694_659_840]),
    "vega": (745_225_604, 83_653_863, [123_060_480, 694_659_840]),
    "x4-upscaler": (473_398_020, 55_325_927, [354_032_640]),
    "sd2-unclip-l": (869_517_764, 83_653_863, [354_032_640]),
    "sd2-unclip-h": (870_173_124, 83_653_863, [354_032_640]),
    "ldm-vq4": (274_056_163, 55_322_782, []),
    "ldm-churches": (294_966_916, 83_653_863, []),
    "ldm-cin": (394_984_196, 67_717_295, []),
    "ldm-cin256": (400_920_579, 55_322_782, []),
    "ldm-text": (872_300_484, 83_653_863, [542_895_360]),
    "ldm-text256": (403_623_939, 55_322_782, [166_590_080]),
    "ldm-layout": (246_277_379, 55_322_782, []),
    "ldm-sr": (113_622_563, 55_322_782, []),
    "ldm-inpainting": (387_245_827, 53_219_486, []),
    "ldm-semantic": (215_229_315, 55_322_782, []),
    "ddpm-cifar10": (35_746_307, 0, []),
    "ddpm-lsun": (113_673_219, 0, []),
}
COND_STAGES = {"ldm-cin": 512_000, "ldm-cin256": 512_512, "ldm-layout": 54_656_000, "ldm-semantic": 546}
COND_STAGES |= {"sd2-unclip-l": 303_966_208 + 2 * 768, "sd2-unclip-h": 632_076_800 + 2 * 1024}


def built(config: object) -> nn.Module:
    with torch.device("meta"):
        return network_of(config)(config)


def num_parameters(config: object) -> int:
    return sum(parameter.numel() for parameter in built(config).parameters())


def test_every_family_has_published_figures() -> None:
    assert set(PUBLISHED) == set(FAMILIES)
    assert set(COND_STAGES) == {name for name, family in FAMILIES.items() if family.cond_stage}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    family = FAMILIES[name]
    found = num_parameters(family.unet), num_parameters(family.autoencoder)
    assert (*found, [num_parameters(tower.config) for tower in family.text]) == PUBLISHED[name]
    if family.cond_stage:
        assert num_parameters(family.cond_stage) == COND_STAGES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_say_the_family(name: str) -> None:
    family = FAMILIES[name]
    config = unet_config(of(built(family.unet).state_dict()))
    assert family_of(config, from_shapes=True) == (family, "base")
    if not name.startswith(("ldm", "ddpm")):
        assert config == family.unet
    for tower in family.text:
        shapes = of(built(tower.config).state_dict())
        if isinstance(tower.config, BERTConfig):
            assert bert_config(shapes) == tower.config
        else:
            assert clip_text_config(shapes, tower.config.activation) == tower.config
    if family.cond_stage:
        special = {"ldm-layout": bert_config, "ldm-semantic": semantic_config}
        read = picture_config if "unclip" in name else special.get(name, class_config)
        assert read(of(built(family.cond_stage).state_dict())) == family.cond_stage


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_shapes_say_the_first_stage(name: str) -> None:
    config = FIRST_STAGES[name]
    assert autoencoder_config(of(built(config).state_dict()), config.scale_factor) == config
    assert config.factor == int(name.split("-")[1][1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_says_its_family(name: str) -> None:
    family = FAMILIES[name]
    assert family_of(family.unet) == (family, "base")


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("channels", "variant"), [(5, "depth"), (8, "instruct-pix2pix"), (9, "inpainting")])
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
    shapes = of(built(FAMILIES["sd1"].unet).state_dict())
    with pytest.raises(ModelFileError, match=r"is missing|there are \d+ output_blocks"):
        unet_config({name: shape for name, shape in shapes.items() if not name.startswith(gone)})
