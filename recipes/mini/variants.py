"""Variants of `mini`: the inputs that each gets beside the noised latent.

B batch, S picture side, H W latent size, f = S/H, D text width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.pipeline.latents import encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.tasks.depth import nearness
from inkwash.pipeline.tasks.upscale import AUGMENTATION
from inkwash.training import masks
from inkwash.training.trainable.whole import widened
from recipes.mini.labels import Labels, caption_alone
from recipes.mini.parts import Latents, common_names
from recipes.mini.tasks import Beside, TextToImageTask, bf16
from recipes.mini.words import noun
from recipes.mini.world import BACKGROUNDS

NUM_LEVELS = len(AUGMENTATION.alphas_cumprod)  # of noise on the upscaler's picture
MAX_LEVEL = 350  # the last that is trained, as in Stable Diffusion's x4


class See(Protocol):
    """The additional inputs of pictures `chosen` (B,)."""

    def __call__(self, labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside: ...


@dataclass(frozen=True)
class Variant:
    """A task of the U-Net."""

    see: See
    channels: Callable[[Model], int] = lambda model: 0  # that the network sees beside the latent's own
    num_classes: Callable[[Labels], int | None] = lambda labels: None
    # how often a picture of each kind is drawn, times its own weight
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"single": 1.0, "recoloured": 1.0, "scene": 10.0}
    )
    caption_dropout: float = 0.1


def variant_task(variant: Variant, labels: Labels, cached: Latents, batch: int) -> TextToImageTask:
    """The training of a variant, from the weights of the labels' model on."""
    model = labels.model
    unet = widened(model.unet, variant.channels(model), variant.num_classes(labels)).to(model.device)
    weights = cached[-1] * torch.tensor([variant.kinds[record["kind"]] for record in labels.records])
    return TextToImageTask(
        unet,
        *cached[:-1],
        weights,
        model.schedule,
        batch,
        model.prediction,
        variant.caption_dropout,
        beside=partial(variant.see, labels),
    )


# ---------------------------------------------------------------- inpainting


def inpainting(labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside:
    """A random mask and the rest of the picture. Half of the masks are about one object, whose caption is its own.

    A drawing that is alone comes before any background, unless the mask hides all of it: its caption says none.
    """
    side = labels.pictures.images.shape[1]
    holes, described, pixels = [], [], labels.pixels(chosen)
    for k, i in enumerate(chosen.tolist()):
        objects = [one for one in labels.apart(i) if caption_alone(one) in labels.alone]
        described.append(i)
        if objects and masks.one_of(rng, 2):
            one = objects[masks.one_of(rng, len(objects))]
            holes.append(masks.around(one["box"], side, rng))
            described[k] = labels.alone[caption_alone(one)]
        else:
            holes.append(masks.anywhere(side, rng))
        if labels.records[i]["kind"] != "scene" and not holes[k].all():
            pixels[k] = restaged(pixels[k], labels.alpha(i), background(side, rng).to(pixels.device))
    mask = torch.stack(holes)[:, None].float().to(pixels.device)
    with torch.no_grad(), bf16(pixels.device):
        latent = encode(labels.model, pixels)
        return Beside(with_hole(labels.model, pixels, mask), latent=latent, described=described)


def restaged(white: Tensor, alpha: np.ndarray, ground: Tensor) -> Tensor:
    """A drawing (3, S, S) that was laid on white, of opacity uint8 (S, S), on another background (3, S, S)."""
    through = 1 - torch.from_numpy(alpha / np.float32(255)).to(white.device)
    return white - through * (1 - ground)  # 1 is white


def background(side: int, rng: torch.Generator) -> Tensor:
    """Pixels (3, S, S) in [-1, 1]: a colour that the world's backgrounds have, or from one to another."""
    colours = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    first, second = (colours[masks.one_of(rng, len(colours))][:, None, None] for _ in range(2))
    ramp = torch.linspace(0, 1, side).expand(1, side, side) * masks.one_of(rng, 2)
    return torch.lerp(first, second, ramp.mT if masks.one_of(rng, 2) else ramp)


@torch.no_grad()
def with_hole(model: Model, pixels: Tensor, mask: Tensor) -> Tensor:
    """The mask and the latent of the picture with grey in its place, (B, 1 + C, H, W); the mask (B, 1, S, S)."""
    latent = torch.cat([encode(model, some) for some in (pixels * (1 - mask)).split(32)])
    return torch.cat([F.interpolate(mask, size=latent.shape[2:]), latent], dim=1)


# ---------------------------------------------------------------- upscaler


def upscaler(labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside:
    """The picture at 1/f of its size, with noise of a random level, which is the class (Ho et al. 2021)."""
    level = torch.randint(MAX_LEVEL, (len(chosen),), generator=rng)
    small = shrunk(labels, chosen)
    return Beside(noised(small, level, torch.randn(small.shape, generator=rng)), vector=level)


def shrunk(labels: Labels, chosen: Tensor) -> Tensor:
    return F.avg_pool2d(labels.pixels(chosen).cpu(), labels.model.autoencoder.config.factor)


def noised(small: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) at noise levels (B,)."""
    alpha_bar = AUGMENTATION.alphas_cumprod[level]
    signal, spread = (a.float().view(-1, 1, 1, 1) for a in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    return signal * small + spread * noise


# ---------------------------------------------------------------- depth


def depth(labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside:
    """Nearness of each place: the true order of the layers."""
    return Beside(near(labels, chosen))


def near(labels: Labels, chosen: Tensor) -> Tensor:
    """Maps (B, 1, H, W) in [-1, 1], 1 nearest."""
    size = labels.pictures.images.shape[1] // labels.model.autoencoder.config.factor
    layers = [Image.fromarray(labels.layers(i)) for i in chosen.tolist()]
    return torch.cat([nearness(image, (size, size)) for image in layers])


# ---------------------------------------------------------------- classes


def class_conditional(labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside:
    """The name that is drawn as a number, in place of a caption; the last number is none, for guidance."""
    index = {name: i for i, name in enumerate(common_names(labels.data))}
    kept = (torch.rand(len(chosen), generator=rng) >= 0.1).tolist()
    slugs = [labels.records[i].get("slug") for i in chosen.tolist()]
    numbers = [
        index.get(slug, len(index)) if keep else len(index) for slug, keep in zip(slugs, kept, strict=True)
    ]
    return Beside(vector=torch.tensor(numbers))


# ---------------------------------------------------------------- layout


def layout(labels: Labels, chosen: Tensor, rng: torch.Generator) -> Beside:
    """Boxes with names, as a map that holds each noun's vector in its box, nearer ones above (SpaText, Avrahami et
    al. 2023). One in ten maps is empty, for guidance."""
    size = labels.pictures.images.shape[1] // labels.model.autoencoder.config.factor
    kept = torch.rand(len(chosen), generator=rng) >= 0.1
    maps = [painted(labels.records[i]["objects"], labels, size) for i in chosen.tolist()]
    return Beside(torch.stack(maps) * kept.view(-1, 1, 1, 1))


def painted(objects: list[dict], labels: Labels, size: int) -> Tensor:
    """The map (D, size, size) of boxes in pixels of the split's pictures."""
    f = labels.model.autoencoder.config.factor
    canvas = torch.zeros(labels.model.unet.config.context_dim or 0, size, size)
    for one in sorted(objects, key=lambda o: o["layer"]):
        x0, y0, x1, y1 = one["box"]
        vector = labels.vectors[noun(one["name"], one["colour"])]
        canvas[:, y0 // f : -(-y1 // f), x0 // f : -(-x1 // f)] = vector[:, None, None]
    return canvas


ALONE = {"single": 1.0, "recoloured": 1.0, "scene": 0.0}
VARIANTS = {
    "inpainting": Variant(inpainting, channels=lambda model: 1 + model.autoencoder.config.latent_channels),
    "upscaler": Variant(upscaler, channels=lambda model: 3, num_classes=lambda labels: NUM_LEVELS),
    "depth": Variant(depth, channels=lambda model: 1),
    "class": Variant(
        class_conditional,
        num_classes=lambda labels: len(common_names(labels.data)) + 1,
        kinds=ALONE,
        caption_dropout=1.0,
    ),
    "layout": Variant(layout, channels=lambda model: model.unet.config.context_dim or 0, caption_dropout=0.5),
}
