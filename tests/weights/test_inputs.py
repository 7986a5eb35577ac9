"""What networks see beside the latent: kind, order and scale from the configs of a file."""

from dataclasses import replace

import pytest
import torch

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.weights.families import FAMILIES
from inkwash.weights.inputs import inputs_of


@pytest.mark.parametrize(
    ("channels", "kind", "order"),
    [
        (4, "base", []),
        (5, "depth", [("depth", 1)]),
        (8, "instruct-pix2pix", [("picture", 4)]),
        (9, "inpainting", [("mask", 1), ("known picture", 4)]),
        (772, "layout", [("boxes", 768)]),
        (6, "unknown", []),
    ],
)
def test_channels_beside_the_latent_say_the_input(channels: int, kind: str, order: list) -> None:
    found = inputs_of(replace(FAMILIES["sd1"].unet, in_channels=channels))
    assert (found.kind, [(each.what, each.num) for each in found.channels]) == (kind, order)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x4-upscaler", "upscaler"),
        ("ldm-sr", "upscaler"),
        ("ldm-inpainting", "inpainting"),
        ("ldm-layout", "layout"),
        ("ldm-semantic", "semantic"),
        ("sd2-unclip-l", "picture"),
        ("sdxl-refiner", "base"),
        ("ddpm-lsun", "base"),
    ],
)
def test_each_family_says_its_input(name: str, kind: str) -> None:
    family = FAMILIES[name]
    found = inputs_of(family.unet, family.cond_stage, family.autoencoder, bool(family.text))
    assert found.kind == kind
    assert found.needed == (None if kind in ("base", "inpainting") else kind)
    beside = family.unet.in_channels - family.unet.predicted_channels
    assert sum(each.num for each in found.channels) == beside


def test_values_are_concatenated_in_the_networks_order_and_scale() -> None:
    mask, picture = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.randn(1, 4, 1, 2)
    values = {"mask": mask, "known picture": picture}
    unet = FAMILIES["sd1"].unet
    inpainting = inputs_of(replace(unet, in_channels=9))
    assert torch.equal(inpainting.concat(values), torch.cat([mask, picture], dim=1))
    # Rombach et al. 2022: the picture first, and masks of -1 and 1
    without_text = inputs_of(replace(unet, in_channels=9), text=False)
    assert torch.equal(without_text.concat(values), torch.cat([picture, 2 * mask - 1], dim=1))
    # Brooks et al. 2023: the posterior's mean without the scale factor
    instruct = inputs_of(replace(unet, in_channels=8), autoencoder=AutoencoderConfig(scale_factor=0.25))
    assert torch.equal(instruct.concat({"picture": picture}), picture * 4)
