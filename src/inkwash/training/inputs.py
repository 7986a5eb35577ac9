"""What a U-Net that sees more is given in training: masks, depth, or the picture before an edit.

B batch, C channels, H W latent size, S side in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.data.cache import View
from inkwash.data.examples import Example
from inkwash.pipeline.images import to_mask, to_pixels
from inkwash.pipeline.latents import encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.tasks.depth import nearness
from inkwash.training import masks

Seen = Sequence[tuple[Example, View]]  # the pictures of a batch, and how they are seen


@dataclass(frozen=True)
class Inputs:
    """A kind of input: how many channels a model has for it, and how they are made (B, C', H, W).

    role: of the picture that each example must have beside its own; None for none. name: of the network's keyword;
    concat is of channels beside the latent.
    """

    channels: Callable[[Model], int]
    make: Callable[[Model, Seen, torch.Generator], Tensor]
    role: str | None = None
    name: str = "concat"


@torch.no_grad()
def inpainting(model: Model, seen: Seen, rng: torch.Generator) -> Tensor:
    """A mask, the picture's own or a random one, and the latent of the picture with grey in its place."""
    made = []
    for example, view in seen:
        pixels, (width, height) = to_pixels(view.apply(example.open())), view.placement.bucket
        if "mask" in example.pictures:
            hole = (to_mask(view.apply(example.open("mask", "L"), Image.Resampling.NEAREST)) > 0.5).float()
        else:
            hole = masks.anywhere(max(width, height), rng)[None, None, :height, :width].float()
        latent = encode(model, pixels * (1 - hole))
        small = F.interpolate(hole, latent.shape[2:], mode="nearest").to(latent)
        # latent diffusion's own one, without text, was trained on the other order, and on masks from -1 to 1
        made.append(torch.cat([small, latent] if model.text_encoders else [latent, 2 * small - 1], dim=1))
    return torch.cat(made)


@torch.no_grad()
def depth(model: Model, seen: Seen, rng: torch.Generator) -> Tensor:
    """How near things are, -1 to 1."""
    f, made = model.autoencoder.config.factor, []
    for example, view in seen:
        width, height = view.placement.bucket
        made.append(nearness(view.apply(example.open("depth", "F")), (height // f, width // f)))
    return torch.cat(made)


@torch.no_grad()
def before(model: Model, seen: Seen, rng: torch.Generator) -> Tensor:
    """The unscaled latent of the picture before the edit, missing for one in ten (Brooks et al. 2023, section 3.2.1)."""
    scale = getattr(model.autoencoder.config, "scale_factor", 1.0)
    pictures = [to_pixels(view.apply(example.open("before"))) for example, view in seen]
    latent = torch.cat([encode(model, pixels) for pixels in pictures]) / scale
    kept = torch.rand(len(seen), generator=rng) >= 0.1
    return latent * kept.to(latent).view(-1, 1, 1, 1)


def latent_channels(model: Model) -> int:
    return model.autoencoder.config.latent_channels


INPUTS: Mapping[str, Inputs] = {
    "inpainting": Inputs(lambda model: latent_channels(model) + 1, inpainting),
    "depth": Inputs(lambda model: 1, depth, "depth"),
    "instruct": Inputs(latent_channels, before, "before"),
}
