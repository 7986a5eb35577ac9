"""Error of networks of full size from those of diffusers and transformers, with the same random weights.

`python benchmarks/parity.py [--only sd1 --only sdxl] [--output benchmarks/results/parity.md]`

Both networks share their weights' memory, so that the largest takes 11 GB; float32, small pictures, one call. The error
is the largest difference over the largest value. `make test-full` asks that it is below 1e-5.
"""

import math
import platform
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cyclopts import App
from torch import Tensor, nn

from inkwash.files import atomic
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.embeddings import timestep_embedding
from inkwash.weights import configs
from inkwash.weights.checkpoint import Component, Undrawn, build
from inkwash.weights.families import (
    CLIP_L,
    OPEN_CLIP_BIG_G,
    OPEN_CLIP_H,
    REFINER,
    SD1,
    SD2,
    SDXL,
    SSD_1B,
    VEGA,
    X4_UPSCALER,
)
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import Table, translate

app = App(help=__doc__)
XL = SDXL.unet
UNETS = {
    "sd1": SD1.unet,
    "sd2": SD2.unet,
    "sdxl": XL,
    "sdxl refiner": REFINER.unet,
    "sd1 inpainting": replace(SD1.unet, in_channels=9),
    "sd2 depth": replace(SD2.unet, in_channels=5),
    "sd1 instruct-pix2pix": replace(SD1.unet, in_channels=8),
    "x4 upscaler": X4_UPSCALER.unet,
    "ssd-1b": SSD_1B.unet,
    "vega": VEGA.unet,
}
CONTROLNETS = {
    "sd1 controlnet": SD1.unet,
    "sd2 controlnet": SD2.unet,
    "sdxl controlnet": XL,
    "sdxl controlnet, mid": replace(XL, transformer_depth=(0, 1, 1), transformer_depth_middle=1),
    "sdxl controlnet, small": replace(XL, transformer_depth=(0, 0, 0), transformer_depth_middle=None),
}
CLIPS = {"clip-l text": CLIP_L, "openclip-h text": OPEN_CLIP_H, "openclip-bigg text": OPEN_CLIP_BIG_G}


class Compared(NamedTuple):
    """parameters of one network, and the largest difference over the largest value."""

    parameters: int
    error: float


def random_weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random weights for a network on the meta device, scaled so that outputs keep the inputs' magnitude."""
    random, made = torch.Generator().manual_seed(seed), {}
    for name, value in network.state_dict().items():
        drawn = torch.empty(value.shape).normal_(generator=random)
        drawn *= 0.1 if value.ndim < 2 else 1 / math.sqrt(value[0].numel())
        made[name] = drawn.add_(1) if value.ndim == 1 and name.endswith("weight") else drawn
    return made


def pair(
    make: type[nn.Module], config: Any, theirs: Callable[[], nn.Module], table: Table
) -> tuple[Any, Any]:
    """Our network and theirs over the same memory."""
    with torch.device("meta"), Undrawn():
        empty = make(config)
        other = None if issubclass(make, CLIPText) else theirs()
    other = other or theirs()  # transformers' have buffers, which need memory
    weights = random_weights(empty)
    ours = build(Component(config, weights))
    # theirs gets the memory of ours, in the order in which ours has it
    other.load_state_dict(translate(ours.state_dict(), table) if table else ours.state_dict(), assign=True)
    return ours, other.eval()


def compared(network: nn.Module, ours: Iterator[Tensor], theirs: Iterator[Tensor]) -> Compared:
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))
    return Compared(sum(p.numel() for p in network.parameters()), error)


def inputs(config: UNetConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Ours, and what diffusers takes in the vector's place."""
    random = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(1, config.in_channels, 32, 32, generator=random),
        "t": torch.tensor([601]),
        "context": torch.randn(1, 77, config.context_dim or 0, generator=random),
    }
    if config.num_classes is not None:
        return given | {"vector": torch.tensor([20])}, {"class_labels": torch.tensor([20])}
    if config.vector_dim is None:
        return given, {}
    num = (config.vector_dim - 1280) // 256
    text, sizes = (
        torch.randn(1, 1280, generator=random),
        torch.tensor([[1024.0, 1024, 0, 8, 1024, 768][:num]]),
    )
    vector = torch.cat([text, timestep_embedding(sizes.flatten(), 256).view(1, -1)], dim=1)
    return given | {"vector": vector}, {"added_cond_kwargs": {"text_embeds": text, "time_ids": sizes}}


def compare_unet(config: UNetConfig) -> Compared:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    make = lambda: UNet2DConditionModel(**configs.unet_json(config))  # noqa: E731
    ours, theirs = pair(UNet, config, make, tables.unet_table(config))
    given, extra = inputs(config)
    expected = theirs(given["x"], given["t"], given["context"], **extra).sample
    return compared(ours, iter([ours(**given)]), iter([expected]))


def compare_controlnet(unet: UNetConfig) -> Compared:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    config = ControlNetConfig(unet)
    make = lambda: ControlNetModel(**configs.controlnet_json(config))  # noqa: E731
    ours, theirs = pair(ControlNet, config, make, tables.controlnet_table(config))
    given, extra = inputs(unet)
    hint = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    x, t, context = (given[name] for name in ("x", "t", "context"))
    down, middle = theirs(x, t, context, controlnet_cond=hint, return_dict=False, **extra)
    return compared(ours, iter(ours(hint=hint, **given)), iter([*down, middle]))


def compare_autoencoder() -> Compared:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs

    config = AutoencoderConfig()
    make = lambda: Theirs(**configs.autoencoder_json(config))  # noqa: E731
    ours, theirs = pair(AutoencoderKL, config, make, tables.autoencoder_table(config))
    random = torch.Generator().manual_seed(1)
    pixels, latent = torch.rand(1, 3, 256, 256, generator=random), torch.randn(1, 4, 32, 32, generator=random)
    made = [*ours.moments(pixels), ours.decode(latent * config.scale_factor)]
    posterior = theirs.encode(pixels).latent_dist
    return compared(ours, iter(made), iter([posterior.mean, posterior.logvar, theirs.decode(latent).sample]))


def compare_clip(config: CLIPTextConfig) -> Compared:
    from transformers import CLIPTextConfig as TheirConfig
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    whole = config.projection_dim is not None
    kind = CLIPTextModelWithProjection if whole else CLIPTextModel
    make = lambda: kind(TheirConfig(**configs.clip_text_json(config)))  # noqa: E731
    ours, theirs = pair(CLIPText, config, make, {} if whole else tables.CLIP_TEXT_BARE)
    tokens = torch.randint(1000, 40000, (2, 77), generator=torch.Generator().manual_seed(1))
    tokens[:, 20:] = config.eos_token
    made = theirs(tokens, output_hidden_states=True)
    pooled = made.text_embeds if whole else made.pooler_output
    last, penultimate = ours(tokens), ours(tokens, skip=2, final_norm=False)[0]
    return compared(
        ours, iter([*last, penultimate]), iter([made.last_hidden_state, pooled, made.hidden_states[-2]])
    )


CASES: dict[str, Callable[[], Compared]] = {
    **{name: (lambda config=config: compare_unet(config)) for name, config in UNETS.items()},
    **{name: (lambda config=config: compare_controlnet(config)) for name, config in CONTROLNETS.items()},
    "autoencoder, kl-f8": compare_autoencoder,
    **{name: (lambda config=config: compare_clip(config)) for name, config in CLIPS.items()},
}


@app.default
def main(*, only: list[str] | None = None, output: Path | None = None) -> None:
    """Print a table, and write it where --output says.

    only: names of rows, by default all.
    """
    rows = ["| network | parameters | largest error |", "|---|---:|---:|"]
    with torch.no_grad():
        for name in only or CASES:
            made = CASES[name]()
            rows.append(f"| {name} | {made.parameters:,} | {made.error:.1e} |")
            print(rows[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    about = f"float32, 32 x 32 latents, random weights; {versions}; {platform.machine()}; peak memory {peak:.1f} GiB."
    if output:
        with atomic(output) as path:
            path.write_text("\n".join(["# Parity at full size", "", about, "", *rows, ""]), "utf-8")


if __name__ == "__main__":
    app()
