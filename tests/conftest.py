"""A tiny model with random weights."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent
from inkwash.weights.models.folder import write_folder
from inkwash.weights.scheduler import scheduler_json

gc.disable()  # until all is imported: looking for garbage among a million objects takes seconds


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what a module's tests share, which is removed after them: tmp_path of a module."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder)


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
    unet, autoencoder, text = networks.values()
    checkpoint = Checkpoint(
        unet=Component(unet.config, unet.state_dict()),
        autoencoder=Component(autoencoder.config, autoencoder.state_dict()),
        text=(TextComponent(text.config, text.state_dict(), tokenizer),),
        scheduler=scheduler_json("eps"),
        default_size=32,
        files=(),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(checkpoint, folder)
    return folder
