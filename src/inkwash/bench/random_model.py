"""A model of a family's full size with random weights, in the diffusers layout."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.clip import CLIPText
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent, Undrawn
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from inkwash.weights.scheduler import scheduler_json


def write_random(family: str, dtype: str, folder: Path) -> None:
    """Weights of unit gain, so that activations are of about unit size all the way."""
    about = FAMILIES[family]
    with torch.device("meta"), Undrawn():
        unet, autoencoder = UNet(about.unet), AutoencoderKL(about.autoencoder)  # pyright: ignore
        texts = [CLIPText(tower.config) for tower in about.text]  # pyright: ignore
    random = torch.Generator().manual_seed(0)

    def drawn(shape: torch.Size, name: str) -> Tensor:
        if len(shape) == 1:
            is_scale = name.endswith("weight")  # of a norm
            return torch.full(shape, float(is_scale), dtype=getattr(torch, dtype))
        std = 0.02 if "embedding" in name else shape[1:].numel() ** -0.5
        # a block of random numbers again and again: as good here, and made in a tenth of the time
        block = torch.randn(min(shape.numel(), 1_000_003), generator=random) * std
        times = -(-shape.numel() // len(block))
        return block.to(getattr(torch, dtype)).repeat(times)[: shape.numel()].reshape(shape)

    def component(network: nn.Module) -> Component[Any]:
        tensors = {name: drawn(p.shape, name) for name, p in network.state_dict().items()}
        return Component(network.config, tensors)  # pyright: ignore[reportArgumentType]

    checkpoint = Checkpoint(
        unet=component(unet),
        autoencoder=component(autoencoder),
        text=tuple(
            TextComponent(
                tower.config,
                component(text).tensors,
                Tokenizer.clip(pad=tower.pad),
                tower.skip,
                tower.final_norm,
            )  # pyright: ignore
            for tower, text in zip(about.text, texts, strict=True)
        ),
        scheduler=scheduler_json("eps"),
        default_size=about.default_size,
        files=(),
        sizes=about.sizes,
        zero_empty=about.zero_empty,
    )
    write_folder(checkpoint, folder)
