"""Samples of a network that sees more than a prompt: drawn by what it is given beside training pictures.

B batch, C channels, H W latent size.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers.singlestep import euler
from inkwash.diffusion.schedules import uniform
from inkwash.pipeline.images import to_images
from inkwash.pipeline.latents import decode
from inkwash.pipeline.model import Model
from inkwash.training.loop import generator_for
from inkwash.training.sources import PictureSource
from inkwash.training.tasks.denoising import Network
from inkwash.training.trainable import Trainable

SEED = 1_000_033  # its noise is never a training step's
NUM = 4  # pictures at most


@torch.no_grad()
def draw_seen(
    model: Model, trainable: Trainable, source: PictureSource, steps: int, cfg_scale: float
) -> tuple[list[Image.Image], list[str]]:
    """Pictures of the source's first batch, each beside what is drawn from noise by its caption and other inputs, with
    their labels. Guidance leaves out the caption alone; what else is random is fixed, picture k's noise that of seed k."""
    pairs = source.over(source.dataset)
    pairs.paired = True
    batch = pairs.batch(0, generator_for(SEED, 0), slice(0, min(NUM, source.size)))

    def network(x: Tensor, t: Tensor, concat: Tensor | None = None, **cond: Any) -> Tensor:
        with trainable.attached():  # for each call, since a control's hooks stay as long
            return Network(model.unet, concat, trainable.steered)(x, t, **cond)

    denoise = precondition(network, model.prediction, model.schedule)
    wanted = {name: value.to(model.device) for name, value in batch.cond.items()}
    other = wanted | {name: value.to(model.device) for name, value in batch.uncond.items()}
    alike = {name: value.shape for name, value in other.items()} == {k: v.shape for k, v in wanted.items()}
    guided = cfg(denoise, wanted, other, cfg_scale if batch.uncond and alike else 1.0, batched=False)
    sigmas = uniform(steps, model.schedule)
    noise = NoiseSource(
        range(len(batch.latent)), tuple(batch.latent.shape[1:]), model.device
    )  # as samples of prompts
    x = noise() * float(sigmas[0])
    for step in euler(guided, x, sigmas):
        x = step.x
    shown, drawn = (to_images(decode(model, latent)) for latent in (batch.latent.to(model.device), x))
    images = [image for pair in zip(shown, drawn, strict=True) for image in pair]
    return images, ["picture", "drawn"] * len(drawn)
