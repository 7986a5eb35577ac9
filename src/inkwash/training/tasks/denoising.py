"""The diffusion objective. B batch, C channels, H W latent size."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.models.unet import UNet
from inkwash.training.distributed import World
from inkwash.training.objectives import Objective
from inkwash.training.sources import Source
from inkwash.training.trainable import Learner

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PictureTask:
    """A task of the loop whose batches come from a source of pictures, for whatever of a model is to learn.

    unet: the network, with `trainable` attached to it or part of it. precision: fp32, or bf16 or fp16, in which products are
    then computed.
    """

    def __init__(
        self,
        unet: UNet,
        trainable: Learner,
        source: Source,
        objective: Objective,
        schedule: NoiseSchedule,
        num_micro_batches: int = 1,
        precision: str = "fp32",
        world: World = World(),
    ):
        self.modules: Mapping[str, nn.Module] = {trainable.name: trainable.module}
        self.unet, self.trainable, self.source, self.objective = unet, trainable, source, objective
        self.schedule, self.num_micro_batches = schedule, num_micro_batches
        self.precision, self.world = precision, world

    def over(self, source: Source) -> Self:
        """This task over other pictures."""
        other = copy.copy(self)
        other.source = source
        return other

    def rate_factor(self, module: str, parameter: str) -> float:
        return self.trainable.rate_factor(parameter) if module == self.trainable.name else 1.0


class DenoisingTask(PictureTask):
    """Noised latents denoised: the objective of every diffusion model."""

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        rows, number = self.world.rows(self.source.size), step * self.num_micro_batches + micro
        device = next(self.unet.parameters()).device
        # attached until gradients are computed, since checkpointing computes the network again for them
        with self.trainable.attached():
            batch = self.source.batch(number, rng, rows)
            latent = batch.latent.to(device)
            t = self.objective.draw_timesteps(self.source.size, rng)[rows].to(device)
            shape = (self.source.size, *latent.shape[1:])
            noise = self.objective.draw_noise(shape, rng)[rows].to(device)
            more = (
                torch.randn(shape, generator=rng)[rows].to(device)
                if self.objective.input_perturbation
                else None
            )
            cond = {name: value.to(device) for name, value in batch.cond.items()}
            concat = cond.pop("concat", None)
            mask = None if batch.mask is None else batch.mask.to(device)
            with computing(device, self.precision):
                weighed, plain = self.objective.losses(
                    Network(self.unet, concat, self.trainable.steered),
                    latent,
                    noise,
                    t,
                    cond,
                    self.schedule,
                    mask,
                    more,
                )
            weight = torch.ones_like(weighed) if batch.weight is None else batch.weight.to(weighed)
            yield self.trainable.name, (weighed * weight).mean(), {"error": plain.mean().item()}


Steered = Callable[[Tensor, Tensor, dict[str, Any]], AbstractContextManager[dict[str, Any]]]


class Network:
    """The U-Net in its own dtype, with what it sees beside x (B, C', H, W), and what acts on its calls.

    It gives the prediction alone, without variances, which no objective here trains.
    """

    def __init__(
        self,
        unet: UNet,
        concat: Tensor | None = None,
        steered: Steered = lambda x, t, cond: nullcontext(cond),
    ):
        self.unet, self.concat, self.steered = unet, concat, steered
        self.like, self.num = next(unet.parameters()), unet.config.predicted_channels

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        x = x if self.concat is None else torch.cat([x, self.concat.to(x)], dim=1)
        x = x.to(self.like.dtype).contiguous(memory_format=torch.channels_last)
        given = {
            name: some.to(self.like.device, self.like.dtype) if some.is_floating_point() else some
            for name, some in cond.items()
        }
        with self.steered(x, t, given) as keywords:
            return self.unet(x, t, **keywords)[:, : self.num]


def computing(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast where the precision is not fp32."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])
