"""Batches of pictures for networks that see pixels. B batch, H W picture size."""

import logging
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from inkwash.data.cache import View
from inkwash.data.captions import vary
from inkwash.data.dataset import Dataset
from inkwash.data.examples import BrokenPicture
from inkwash.pipeline.images import to_pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PixelBatch:
    """Pictures (B, 3, H, W) in [-1, 1], and a caption of each."""

    pixels: Tensor
    captions: list[str]


class PixelSource:
    """A dataset's pictures as pixels. stop: whether a broken one ends the run; else the next of its bucket stands in."""

    def __init__(self, dataset: Dataset, stop: bool = False):
        self.dataset, self.size, self.stop = dataset, dataset.batch, stop
        self.named: set[Path | str] = set()

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> PixelBatch:
        """The rows of batch `number` that a process sees; the randomness is drawn for the whole batch."""
        chosen = self.dataset.batch_at(number)
        random = [Random(int(n)) for n in torch.randint(2**62, (len(chosen),), generator=rng)]
        pixels, captions = [], []
        for i, own in list(zip(chosen, random, strict=True))[rows]:
            crop, coin = (own.random(), own.random()), own.random()
            shown, k = self.picture(i, crop, coin)
            example = self.dataset.examples[k]
            pixels.append(shown)
            captions.append(vary(example.captions, example.rules, own))
        return PixelBatch(torch.cat(pixels).contiguous(memory_format=torch.channels_last), captions)

    def picture(self, i: int, crop: tuple[float, float], coin: float) -> tuple[Tensor, int]:
        """The pixels (1, 3, H, W) of example i, or of the first whole one after it in its bucket, and which it was."""
        for k in self.dataset.from_here(i):
            example, placement = self.dataset.examples[k], self.dataset.placements[k]
            try:
                return to_pixels(View.of(example, placement, crop, coin).apply(example.open())), k
            except BrokenPicture as error:
                if self.stop:
                    raise
                if str(error) not in self.named:
                    self.named.add(str(error))
                    log.warning("passed over: %s", error)
        raise BrokenPicture(f"every picture of the bucket {self.dataset.placements[i].bucket} is broken")
