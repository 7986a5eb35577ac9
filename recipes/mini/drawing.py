"""Pictures of a model's network without a request, of what held-out pictures say, and where things are in them.

N pictures, B batch, S their side, H W latent size.
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.explain.tiles import contact_sheet
from inkwash.files import atomic
from inkwash.pipeline.images import to_images
from inkwash.pipeline.model import Around, Model
from recipes.mini.evaluate import CFG_SCALE, SAMPLER, STEPS
from recipes.mini.labels import Labels
from recipes.mini.tasks import Beside

NUM_PICTURES = 100
SHOWN = 10  # columns of a sheet
BATCH = 20


@torch.inference_mode()
def drawn(
    model: Model,
    captions: Sequence[str],
    seen: Beside,
    none: Beside | None = None,
    cfg_scale: float = CFG_SCALE,
    around: Around = lambda x, t, cond: nullcontext(cond),
    steps: int = STEPS,
    sampler: str = SAMPLER,
    schedule: str = "uniform",
    sigmas: Tensor | None = None,
) -> Tensor:
    """Pixels (N, 3, S, S) in [-1, 1], seed k for picture k, of captions and what is seen besides (N, ...).

    none: what is seen in its place by the unguided half. around: what acts on each call of the U-Net.
    sigmas: (n+1,), in the place of steps and schedule.
    """
    made = []
    for rows in track(torch.arange(len(captions)).split(BATCH), f"{len(captions)} pictures of {model.name}"):
        texts = [captions[int(i)] for i in rows]
        D = cfg(
            precondition(model.network(around), model.prediction, model.schedule),
            {"context": contexts(model, texts)} | of(seen, rows),
            {"context": contexts(model, [""] * len(texts))} | of(none or seen, rows),
            cfg_scale,
        )
        side = model.default_size // model.autoencoder.config.factor
        noise = NoiseSource(
            rows.tolist(), (model.autoencoder.config.latent_channels, side, side), model.device
        )
        sigmas = SCHEDULES[schedule](steps, model.schedule) if sigmas is None else sigmas
        first = noise()
        *_, last = SAMPLERS[sampler](D, first * sigmas[0].item(), sigmas, noise=noise)
        made.append(model.autoencoder.decode(last.x.to(model.dtype)).float().clamp(-1, 1))
    return torch.cat(made)


def contexts(model: Model, texts: Sequence[str]) -> Tensor:
    """Contexts of texts as in training: without the prompt language, and cut where they are too long."""
    (text,) = model.text_encoders
    return text.model(torch.tensor(text.tokenizer(texts), device=model.device), text.skip, text.final_norm)[0]


def of(seen: Beside, rows: Tensor) -> dict[str, Tensor]:
    return {
        name: part[rows]
        for name, part in (("concat", seen.concat), ("vector", seen.vector), ("hint", seen.hint))
        if part is not None
    }


def heldout(labels: Labels, seed: int = 0, **wanted: object) -> Tensor:
    """Numbers of NUM_PICTURES held-out pictures whose records have these values."""
    found = [i for i, r in enumerate(labels.records) if all(r.get(k) == v for k, v in wanted.items())]
    return torch.tensor(random.Random(seed).sample(found, min(NUM_PICTURES, len(found))))


def mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def places(labels: Labels, rows: Tensor) -> Tensor:
    """Masks of the pictures' true objects: (N, S, S)."""
    return torch.stack([torch.from_numpy(labels.layers(i) > 0) for i in rows.tolist()])


def objects(pixels: Tensor) -> Tensor:
    """Mask of where pictures (N, 3, S, S) differ from the colour that most of their edge has: (N, S, S)."""
    edge = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[..., 0], pixels[..., -1]], dim=2)
    return (pixels - edge.median(dim=2).values[:, :, None, None]).abs().amax(1) > 0.25


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N,) of places (N, S, S)."""
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)


def save_sheet(rows: Sequence[Tensor], path: Path) -> None:
    """The first pictures of each row, one below the other."""
    images = [image for pixels in rows for image in to_images(pixels[:SHOWN])]
    with atomic(path) as partial:
        contact_sheet(images, columns=SHOWN).quantize(256).save(partial, optimize=True)
