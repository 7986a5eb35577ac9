"""Figures of a model's pictures while it learns. N pictures, D feature width."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from inkwash.data.examples import PICTURES
from inkwash.metrics.frechet import Moments, frechet_distance
from inkwash.metrics.inception_score import inception_score
from inkwash.metrics.networks import FeatureNetwork, Features
from inkwash.pipeline.images import to_pixels
from inkwash.training.ema import EMA, floats

Draw = Callable[[Sequence[int]], list[Image.Image]]  # pictures of these seeds
CHUNK = 16  # pictures that are drawn, or looked at, at once


class Judge:
    """Fréchet distance (Heusel et al. 2017) to the pictures of a folder, and Inception score (Salimans et al. 2016).

    num: pictures that are drawn each time, always of the seeds 0 to num - 1. size: width and height, to which the folder's
    pictures are fitted. The score is left out where the network has no classes or num is below 100. Raises ValueError
    where the folder has fewer than two pictures.
    """

    def __init__(self, network: FeatureNetwork, reference: Path, num: int, size: tuple[int, int]):
        self.network, self.num = network, num
        paths = sorted(path for path in reference.rglob("*") if path.suffix.lower() in PICTURES)
        if len(paths) < 2:
            raise ValueError(
                f"figures_of {str(reference)!r} has {len(paths)} pictures; 2 or more are compared with"
            )
        self.reference = Moments.of(self.seen(opened(paths, size)).pooled)

    def __call__(self, draw: Draw) -> dict[str, float]:
        """fid and, where there is one, inception_score of new pictures."""
        images = (one for k in range(0, self.num, CHUNK) for one in draw(range(k, min(k + CHUNK, self.num))))
        features = self.seen(images)
        figures = {"fid": frechet_distance(Moments.of(features.pooled), self.reference)}
        if features.logits is not None and self.num >= 100:
            figures["inception_score"] = inception_score(features.logits).value
        return figures

    def seen(self, images: Iterator[Image.Image]) -> Features:
        """The network's features of all of them."""
        parts, some = [], []
        for image in images:
            some.append(to_pixels(image.convert("RGB")))
            if len(some) == CHUNK:
                parts.append(self.network(torch.cat(some)))
                some = []
        parts += [self.network(torch.cat(some))] if some else []
        logits: list[Tensor] = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.pooled for part in parts]), torch.cat(logits) if logits else None)


def opened(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[Image.Image]:
    """Pictures, cut and scaled to a size."""
    for path in paths:
        with Image.open(path) as image:
            yield ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)


@contextmanager
def averaged(module: nn.Module, ema: EMA | None) -> Iterator[None]:
    """Give the module its averaged weights within the context, where there are any."""
    if ema is None:
        yield
        return
    own = {name: value.clone() for name, value in floats(module).items()}
    ema.copy_to(module)
    try:
        yield
    finally:
        for name, value in floats(module).items():
            value.copy_(own[name])
