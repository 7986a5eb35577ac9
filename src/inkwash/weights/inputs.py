"""A network's inputs beside the latent, in order and scale. B batch, C channels, H W latent size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.conditions import PictureConfig, SemanticConfig, VectorConfig
from inkwash.models.unet import UNetConfig

STAGES = {
    SemanticConfig: "semantic",
    BERTConfig: "layout",
    PictureConfig: "picture",
    VectorConfig: "vector",
}  # conditions that a stage makes


@dataclass(frozen=True)
class Channels:
    """Input channels behind those of the latent: `what`, seen as value / scale + shift."""

    what: str
    num: int
    scale: float = 1.0
    shift: float = 0.0

    def scaled(self, value: Tensor) -> Tensor:
        """A value (B, C, H, W) as the network sees it."""
        value = value if self.scale == 1 else value / self.scale
        return value + self.shift if self.shift else value


@dataclass(frozen=True)
class Inputs:
    """A network's inputs beside the latent.

    kind: base for nothing; inpainting, depth, instruct-pix2pix, upscaler; layout, semantic, picture, vector; unknown.
    channels: in the order in which they follow the latent; none where a context or a vector holds the input.
    """

    kind: str
    channels: tuple[Channels, ...] = ()

    @property
    def needed(self) -> str | None:
        """The kind that a task must give; None where nothing must, as inpainting models draw without a picture too."""
        return None if self.kind in ("base", "inpainting") else self.kind

    def concat(self, values: Mapping[str, Tensor]) -> Tensor:
        """The channels (B, C, H, W) of values by their names, in the network's order and scale."""
        return torch.cat([each.scaled(values[each.what]) for each in self.channels], dim=1)


def inputs_of(unet: UNetConfig, cond_stage: Any = None, autoencoder: Any = None, text: bool = True) -> Inputs:
    """Detect what a network sees from the configs of a file. text: whether it also sees text."""
    latent = unet.predicted_channels
    more = unet.in_channels - latent
    if kind := STAGES.get(type(cond_stage)):
        return Inputs(kind, (Channels("labels", more),) if kind == "semantic" else ())
    if more == 0:
        return Inputs("base")
    if more == 3 and (unet.num_classes is not None or unet.level_embedding or not unet.attends):
        return Inputs("upscaler", (Channels("small picture", more),))
    if more == 1:
        return Inputs("depth", (Channels("depth", more),))
    if more == latent:  # trained on latents as the autoencoder gives them; a tiny one's are scaled as SD1's
        scale = getattr(autoencoder, "scale_factor", AutoencoderConfig.scale_factor)
        return Inputs("instruct-pix2pix", (Channels("picture", more, scale),))
    if more == latent + 1:
        known = Channels("known picture", latent)
        # latent diffusion's own network, without text, was trained on the other order, and on masks from -1 to 1
        order = (Channels("mask", 1), known) if text else (known, Channels("mask", 1, scale=0.5, shift=-1.0))
        return Inputs("inpainting", order)
    if more == unet.context_dim:
        return Inputs("layout", (Channels("boxes", more),))
    return Inputs("unknown")
