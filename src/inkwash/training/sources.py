"""Batches of a dataset, as the diffusion objective takes them. B batch, C channels, H W latent size."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from inkwash.data.cache import LatentCache, View
from inkwash.data.captions import vary
from inkwash.data.dataset import Dataset
from inkwash.data.examples import BrokenPicture, Example
from inkwash.pipeline.images import to_mask
from inkwash.pipeline.model import Model
from inkwash.training.conditioning import Conditioner, Framing
from inkwash.training.distributed import World
from inkwash.training.inputs import Inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Scaled latents (B, C, H, W), and the network's other inputs.

    cond: its keyword arguments; uncond: those of the empty caption, where they were asked for.
    weight: (B,) of the losses. mask: (B, 1, H, W), where errors count.
    """

    latent: Tensor
    cond: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    mask: Tensor | None = None
    uncond: dict[str, Tensor] = field(default_factory=dict)


class Source(Protocol):
    """A source of batches. size: pictures in a batch of all processes."""

    size: int

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        """The rows of batch `number` that a process computes; the randomness is drawn for the whole batch."""
        ...


class PictureSource:
    """A dataset's pictures, encoded. inputs: of a U-Net that sees more. masked: whether masks limit the loss.
    paired: whether batches have what the empty caption gives, too."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        conditioner: Conditioner,
        cache: Path | None,
        inputs: Inputs | None = None,
        masked: bool = False,
        paired: bool = False,
        stop: bool = False,
    ):
        self.model, self.dataset, self.conditioner, self.paired = model, dataset, conditioner, paired
        self.latents = LatentCache(model.autoencoder, cache)
        self.inputs, self.masked, self.size = inputs, masked, dataset.batch
        self.stop, self.replaced = stop, set[int]()

    def over(self, dataset: Dataset) -> "PictureSource":
        """This source over other pictures."""
        other = copy.copy(self)
        other.dataset, other.size, other.replaced = dataset, dataset.batch, set()
        return other

    def fill_cache(self, world: World) -> None:
        """Encode every picture once, with a bar; those that turn out to be broken are named and left out."""
        broken = torch.zeros(len(self.dataset.examples), dtype=torch.int64)
        mine = range(world.rank, len(self.dataset.examples), world.size)
        for i in track(mine, "encoding pictures", transient=True, disable=not world.is_first):
            example, placement = self.dataset.examples[i], self.dataset.placements[i]
            try:
                for coin in (0.0, 1.0) if example.flip else (1.0,):
                    self.latents.posterior(example, View.of(example, placement, (0.5, 0.5), coin))
            except BrokenPicture as error:
                if self.stop:
                    raise
                self.name(error)
                broken[i] = 1
        # all processes leave out what one of them found, or their batches would differ
        if gone := world.gathered(broken[None]).any(dim=0).nonzero().flatten().tolist():
            self.dataset.drop(gone)

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        """As of `Source`. In a broken picture's place stands the next whole one of its bucket; with `stop`, and where there
        is none, BrokenPicture is raised."""
        state = rng.get_state()
        while True:
            try:
                return self.read(number, rng, rows)
            except BrokenPicture as error:
                found = self.broken_of(self.dataset.batch_at(number)[rows])
                if self.stop or not found:
                    raise
                self.name(error)
                self.replaced |= found
                rng.set_state(state)

    def name(self, error: BrokenPicture) -> None:
        log.warning("passed over: %s", error)
        self.dataset.broken.append(str(error))

    def broken_of(self, chosen: Sequence[int]) -> set[int]:
        """Those of the pictures, or of what stands for them, that can't be read, or whose pictures of a role can't be."""
        found = set()
        for i in map(self.standing_in, chosen):
            example = self.dataset.examples[i]
            try:
                for role in (None, *example.pictures):
                    example.open(role)
            except BrokenPicture:
                found.add(i)
        return found

    def standing_in(self, i: int) -> int:
        """A picture, or the next of its bucket that is not known to be broken. Raises BrokenPicture where none is left."""
        if i not in self.replaced:
            return i
        for k in self.dataset.from_here(i):
            if k not in self.replaced:
                return k
        raise BrokenPicture(f"every picture of the bucket {self.dataset.placements[i].bucket} is broken")

    def read(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        """The batch. Raises BrokenPicture for a picture of it that can't be read."""
        chosen = [self.standing_in(i) for i in self.dataset.batch_at(number)]
        random = [Random(int(n)) for n in torch.randint(2**62, (len(chosen),), generator=rng)]
        seen = []
        for i, own in zip(chosen, random, strict=True):
            example = self.dataset.examples[i]
            crop, coin = (own.random(), own.random()), own.random()
            seen.append((example, View.of(example, self.dataset.placements[i], crop, coin)))
        captions = [vary(one.captions, one.rules, own) for (one, _), own in zip(seen, random, strict=True)][
            rows
        ]
        noise = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        posteriors = [self.latents.posterior(*one) for one in seen[rows]]
        shape = posteriors[0].mean.shape[1:]
        drawn = torch.randn(len(chosen), *shape, generator=noise)[rows]
        latent = torch.cat([one.sample(row[None]) for one, row in zip(posteriors, drawn, strict=True)])
        framings = [framing(*one) for one in seen[rows]]
        cond = self.conditioner(captions, framings)
        uncond = self.conditioner([""] * len(framings), framings) if self.paired else {}
        if self.inputs:
            own = [torch.Generator().manual_seed(one.getrandbits(62)) for one in random[rows]]
            cond |= self.inputs.make(
                self.model, [(*one, rng) for one, rng in zip(seen[rows], own, strict=True)]
            )
        weight = torch.tensor([example.weight for example, _ in seen[rows]])
        return Batch(latent, cond, weight, mask_of(seen[rows], latent) if self.masked else None, uncond)


def framing(example: Example, view: View) -> Framing:
    """SDXL's size conditions of a picture; its aesthetic score where a column has one."""
    score = example.columns.get("aesthetic", 6.0)
    return Framing(
        example.size,
        (view.left, view.top),
        view.placement.bucket,
        float(score) if isinstance(score, int | float) else 6.0,
    )


def mask_of(seen: Sequence[tuple[Example, View]], latent: Tensor) -> Tensor:
    """Mask of where errors count (B, 1, H, W): everywhere in a picture that has no mask."""
    made = []
    for example, view in seen:
        if "mask" in example.pictures:
            mask = to_mask(view.apply(example.open("mask"), Image.Resampling.BILINEAR))
            made.append(F.interpolate(mask, latent.shape[2:], mode="area"))
        else:
            made.append(torch.ones(1, 1, *latent.shape[2:]))
    return torch.cat(made)
