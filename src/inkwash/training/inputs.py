"""Additional inputs of a U-Net in training: masks, depth, the picture before an edit, a class, boxes, labels, or a
small picture.

B batch, C channels, H W latent size, S side in pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.data.cache import View
from inkwash.data.examples import Example
from inkwash.data.folders import DataError
from inkwash.models.bert import BERT
from inkwash.models.conditions import ClassEmbedder, SemanticRescaler
from inkwash.pipeline.boxes import Box, read_box
from inkwash.pipeline.images import to_mask, to_pixels
from inkwash.pipeline.latents import encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.tasks.depth import nearness
from inkwash.pipeline.tasks.layout import box_tokens, painted
from inkwash.pipeline.tasks.semantic import one_hot
from inkwash.pipeline.tasks.upscale import AUGMENTATION
from inkwash.training import masks

# the pictures of a batch, how each is seen, and what it draws its randomness from
Seen = Sequence[tuple[Example, View, torch.Generator]]
MAX_LEVEL = 350  # of noise on the upscaler's picture, as Stable Diffusion's x4 was trained


@dataclass(frozen=True)
class Inputs:
    """A kind of input: how many channels a model has for it beside the latent, and the network's arguments (B, ...).

    role: of the picture that each example must have beside its own; None for none. classes: how many a plain U-Net gets.
    """

    channels: Callable[[Model], int]
    make: Callable[[Model, Seen], dict[str, Tensor]]
    role: str | None = None
    classes: Callable[[Sequence[Example]], int | None] = lambda examples: None


@torch.no_grad()
def inpainting(model: Model, seen: Seen) -> dict[str, Tensor]:
    """A mask, the picture's own or a random one, and the latent of the picture with grey in its place."""
    made = []
    for example, view, rng in seen:
        pixels, (width, height) = to_pixels(view.apply(example.open())), view.placement.bucket
        if "mask" in example.pictures:
            hole = (to_mask(view.apply(example.open("mask"), Image.Resampling.NEAREST)) > 0.5).float()
        else:
            hole = masks.anywhere(max(width, height), rng)[None, None, :height, :width].float()
        latent = encode(model, pixels * (1 - hole))
        small = F.interpolate(hole, latent.shape[2:], mode="nearest").to(latent)
        # latent diffusion's own one, without text, was trained on the other order, and on masks from -1 to 1
        made.append(torch.cat([small, latent] if model.text_encoders else [latent, 2 * small - 1], dim=1))
    return {"concat": torch.cat(made)}


@torch.no_grad()
def depth(model: Model, seen: Seen) -> dict[str, Tensor]:
    """Nearness of things, -1 to 1."""
    f, made = model.autoencoder.config.factor, []
    for example, view, _ in seen:
        width, height = view.placement.bucket
        made.append(nearness(view.apply(example.open("depth")), (height // f, width // f)))
    return {"concat": torch.cat(made)}


@torch.no_grad()
def before(model: Model, seen: Seen) -> dict[str, Tensor]:
    """The unscaled latent of the picture before the edit, missing for one in ten (Brooks et al. 2023, section 3.2.1)."""
    scale = getattr(model.autoencoder.config, "scale_factor", 1.0)
    pictures = [to_pixels(view.apply(example.open("before"))) for example, view, _ in seen]
    latent = torch.cat([encode(model, pixels) for pixels in pictures]) / scale
    return {"concat": latent * kept(seen, latent, 0.1).view(-1, 1, 1, 1)}


def kept(seen: Seen, like: Tensor, dropout: float) -> Tensor:
    """1 for the pictures (B,) that keep their condition, 0 for the share that lose it, so that guidance is trained."""
    drawn = torch.cat([torch.rand(1, generator=rng) for _, _, rng in seen])
    return (drawn >= dropout).to(like)


def classes(model: Model, seen: Seen) -> dict[str, Tensor]:
    """The pictures' classes, which `number_classes` has numbered, as the model takes them."""
    numbers = torch.tensor([example.columns["class"] for example, _, _ in seen], device=model.device)
    stage = model.cond_stage
    num = stage.config.num_classes if isinstance(stage, ClassEmbedder) else model.unet.config.num_classes
    dropout = torch.tensor([example.columns["class_dropout"] for example, _, _ in seen])
    drawn = torch.cat([torch.rand(1, generator=rng) for _, _, rng in seen])
    numbers = torch.where((drawn < dropout).to(model.device), (num or 0) - 1, numbers)
    return {"context": stage(numbers)} if isinstance(stage, ClassEmbedder) else {"vector": numbers}


def num_classes(examples: Sequence[Example]) -> int:
    """The number of the pictures' classes, and one more that stands for none."""
    return max(example.columns["class"] for example in examples) + 2


def layout(model: Model, seen: Seen) -> dict[str, Tensor]:
    """The boxes of the pictures, as tokens in random order or as a map of words' vectors; that is empty for one in ten."""
    stage = model.cond_stage
    boxes = [boxes_in(example, view) for example, view, _ in seen]
    if isinstance(stage, BERT):
        c = stage.config
        order = [
            torch.randperm(len(own), generator=rng) for own, (_, _, rng) in zip(boxes, seen, strict=True)
        ]
        shuffled = [[own[k] for k in some.tolist()] for own, some in zip(boxes, order, strict=True)]
        most = (c.max_length - 2) // 3
        tokens = [box_tokens(own[:most], c.max_length, c.vocab_size) for own in shuffled]
        return {"context": stage(torch.tensor(tokens, device=model.device))[0]}
    sizes = [view.placement.bucket for _, view, _ in seen]
    with torch.no_grad():
        made = torch.cat([painted(model, own, size) for own, size in zip(boxes, sizes, strict=True)])
    return {"concat": made * kept(seen, made, 0.1).view(-1, 1, 1, 1)}


def boxes_of(example: Example) -> list[Box]:
    """The boxes of a picture's column. Raises DataError where it has none, or one can't be read."""
    listed = example.columns.get("boxes")
    if not isinstance(listed, list):
        raise DataError(f"{example.image} has no list in the column boxes, such as ['0,0.5,1,1=a red book']")
    try:
        return [read_box(text) for text in listed]
    except ValueError as error:
        raise DataError(f"{example.image}: {error}") from error


def boxes_in(example: Example, view: View) -> list[Box]:
    """The boxes of a picture's column as they lie in its view; those outside it are left out."""
    (width, height), (across, down) = view.placement.scaled, view.placement.bucket
    made = []
    for x0, y0, x1, y1, what in boxes_of(example):
        left, right = sorted(min(1.0, max(0.0, (x * width - view.left) / across)) for x in (x0, x1))
        top, bottom = sorted(min(1.0, max(0.0, (y * height - view.top) / down)) for y in (y0, y1))
        left, right = (1 - right, 1 - left) if view.flipped else (left, right)
        if left < right and top < bottom:
            made.append(Box(left, top, right, bottom, what))
    return made


def semantic(model: Model, seen: Seen) -> dict[str, Tensor]:
    """The model's encoding of the maps of labels, which it learns."""
    stage, f = model.cond_stage, model.autoencoder.config.factor
    if not isinstance(stage, SemanticRescaler):
        raise ValueError(f"{model.name} sees no map of labels; give one that does, or a design")
    maps = []
    for example, view, _ in seen:
        width, height = view.placement.bucket
        labels = view.apply(example.open("labels"), Image.Resampling.NEAREST)
        maps.append(one_hot(labels, stage, (width // f, height // f)))
    return {"concat": stage(torch.cat(maps).to(model.device))}


def upscaler(model: Model, seen: Seen) -> dict[str, Tensor]:
    """The pictures at 1/f of their sizes, noised where the U-Net takes a noise level."""
    f, small = model.autoencoder.config.factor, []
    for example, view, _ in seen:
        width, height = view.placement.bucket
        small.append(
            to_pixels(view.apply(example.open()).resize((width // f, height // f), Image.Resampling.BICUBIC))
        )
    pixels = torch.cat(small)
    if model.unet.config.num_classes is None:
        return {"concat": pixels}
    level = torch.cat([torch.randint(MAX_LEVEL, (1,), generator=rng) for _, _, rng in seen])
    noise = torch.cat([torch.randn(1, *pixels.shape[1:], generator=rng) for _, _, rng in seen])
    alpha_bar = AUGMENTATION.alphas_cumprod[level].float().view(-1, 1, 1, 1)
    return {"concat": alpha_bar.sqrt() * pixels + (1 - alpha_bar).sqrt() * noise, "vector": level}


def latent_channels(model: Model) -> int:
    return model.autoencoder.config.latent_channels


def layout_channels(model: Model) -> int:
    return 0 if isinstance(model.cond_stage, BERT) else model.unet.config.context_dim or 0


def semantic_channels(model: Model) -> int:
    return model.cond_stage.config.channels if isinstance(model.cond_stage, SemanticRescaler) else 0


INPUTS: Mapping[str, Inputs] = {
    "inpainting": Inputs(lambda model: latent_channels(model) + 1, inpainting),
    "depth": Inputs(lambda model: 1, depth, "depth"),
    "instruct": Inputs(latent_channels, before, "before"),
    "class": Inputs(lambda model: 0, classes, classes=num_classes),
    "layout": Inputs(layout_channels, layout),
    "semantic": Inputs(semantic_channels, semantic, "labels"),
    "upscaler": Inputs(lambda model: 3, upscaler, classes=lambda examples: len(AUGMENTATION.alphas_cumprod)),
}


def number_classes(examples: Sequence[Example], dropout: float) -> tuple[list[Example], list[str]]:
    """The examples with numbers in their column `class`, and the classes' names where those are words.

    Without such a column, the name of a picture's folder is its class. Raises DataError where some have numbers and some
    words, and for a number below 0.
    """
    said = [example.columns.get("class", example.image.path.parent.name) for example in examples]
    numbers = [
        int(one) if isinstance(one, int | float) and one == math.floor(one) >= 0 else None for one in said
    ]
    names: list[str] = []
    if None in numbers:
        if odd := next((one for one in said if not isinstance(one, str)), None):
            raise DataError(
                f"class {odd!r} is not a whole number from 0 on, or others are words; give all as one or the other"
            )
        names = sorted(set(map(str, said)))
        numbers = [names.index(str(one)) for one in said]
    own = [{"class": number, "class_dropout": dropout} for number in numbers]
    made = [
        Example(
            one.image, one.captions, one.rules, one.pictures, one.repeats, one.weight, one.flip, one.random_crop,
            {**one.columns, **more},
        )
        for one, more in zip(examples, own, strict=True)
    ]  # fmt: skip
    return made, names
