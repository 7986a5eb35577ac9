"""A tiny model with random weights."""

from pathlib import Path

import pytest
import torch

from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.folders import Parts, write_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A model folder: pictures of 32 x 32 from latents of 4 x 16 x 16."""
    tokenizer = Tokenizer([])
    networks = {
        "unet": UNet(
            UNetConfig(
                channels=8,
                channel_mult=(1, 2),
                num_res_blocks=1,
                transformer_depth=(1, 0),
                context_dim=8,
                num_heads=2,
                norm_groups=4,
            )
        ),
        "autoencoder": AutoencoderKL(
            AutoencoderConfig(channels=8, channel_mult=(1, 1), num_res_blocks=1, norm_groups=4)
        ),
        "text_encoder": CLIPText(
            CLIPTextConfig(
                vocab_size=len(tokenizer.vocab),
                width=8,
                num_layers=1,
                num_heads=2,
                mlp_width=16,
                eos_token=tokenizer.end,
            )
        ),
    }
    random = torch.Generator().manual_seed(0)
    for network in networks.values():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=random)
    parts = Parts(
        **networks,
        tokenizer=tokenizer,
        schedule=NoiseSchedule.from_betas(sqrt_linear_betas(1000, 0.00085, 0.012)),
        prediction="eps",
        default_size=32,
        hash="",
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(parts, folder)
    return folder
