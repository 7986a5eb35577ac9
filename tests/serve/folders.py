"""Folders of a server: models with what steers the tiny one, and pictures to train on."""

import shutil
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from tests.support.small_controls import picture, write_controlnet
from tests.support.tiny_models import drawn_at_random


def write_models(tiny: Path, folder: Path) -> Path:
    """The tiny model, another one with larger weights, a ControlNet and a union of both."""
    for name, scale in (("tiny", 1.0), ("other", 1.5)):
        shutil.copytree(tiny, folder / name)
        weights = folder / name / "unet/diffusion_pytorch_model.safetensors"
        save_file({key: value * scale for key, value in load_file(weights).items()}, weights)
    (folder / "controlnet").mkdir()
    unet = inkwash.load(tiny).unet.config
    network = drawn_at_random(ControlNet(ControlNetConfig(unet)))
    write_controlnet(network, folder / "controlnet/net.safetensors")
    config = ControlNetUnionConfig(unet, num_types=8)
    union = Component(config, drawn_at_random(ControlNetUnion(config)).state_dict())
    write_component(union, folder / "controlnet/union.safetensors", "single")
    return folder


def write_pictures(folder: Path, num: int = 4) -> Path:
    """Pictures with captions."""
    folder.mkdir(parents=True)
    for k in range(num):
        picture(k).resize((32, 32), Image.Resampling.LANCZOS).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"thing {k}")
    return folder
