"""Small models of each family with an autoencoder of factor 8, as hints want it, and networks that steer them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.weights.checkpoint import Component
from inkwash.weights.families import SD1, SD2, SDXL, Family
from inkwash.weights.models.component import write_component
from inkwash.weights.models.folder import write_folder
from tests.models.test_unet import randomise
from tests.weights.test_single_files import SMALL, VAE, random_checkpoint, small

SIDE = 64


def deep(family: Family) -> Family:
    scale = family.autoencoder.scale_factor
    first_stage = replace(VAE, channel_mult=(1, 1, 1, 1), scale_factor=scale)
    return replace(family, autoencoder=first_stage, default_size=SIDE)


def three_levels(family: Family, depth: tuple[int, int, int]) -> Family:
    return replace(family, unet=replace(family.unet, channel_mult=(1, 2, 2), transformer_depth=depth))


def seeing(family: Family, channels: int) -> Family:
    return replace(family, unet=replace(family.unet, in_channels=channels))


FAMILIES = {
    "sd1": three_levels(deep(SMALL["small-sd1"]), (1, 1, 0)),
    "sd2": deep(small(SD2, (1, 1))),
    "sdxl": three_levels(deep(small(SDXL, (0, 1))), (0, 1, 1)),
    "inpainting": seeing(deep(small(SD1, (1, 0))), 9),
}


def write_model(name: str, folder: Path) -> Path:
    family = FAMILIES[name]
    write_folder(random_checkpoint(family, family.prediction or "eps"), folder / name)
    return folder / name


def scaled(network: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """Random weights, the last ones (zero when untrained) small, so that the picture keeps its shape."""
    randomise(network, seed=seed)
    return network.eval().requires_grad_(False)


def controlnet(name: str, seed: int = 5, **changes: object) -> ControlNet:
    unet = replace(FAMILIES[name].unet, in_channels=4)
    network = ControlNet(ControlNetConfig(unet, **changes))
    scaled(network, seed)
    return network


def write_controlnet(network: ControlNet, path: Path, layout: str = "single") -> Path:
    config = ControlNetConfig(network.config, network.hint_channels, network.global_pool)
    write_component(Component(config, network.state_dict()), path, layout)
    return path


def picture(seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 12, 40, 48), fill=tuple(random.integers(0, 256, 3).tolist()))
    draw.rectangle((32, 28, 60, 60), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def first(seed: int, channels: int = 4) -> torch.Tensor:
    from inkwash.diffusion.noise import NoiseSource

    return NoiseSource([seed], (channels, SIDE // 8, SIDE // 8))()
