"""The objective of a diffusion prior. B batch of a process, E width of CLIP's vectors."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from inkwash.models.clip import MEAN, STD, CLIPVision
from inkwash.pipeline.prior import SCHEDULE, TextPrior
from inkwash.training.distributed import World
from inkwash.training.objectives import Objective, prediction_error
from inkwash.training.pixels import PixelSource
from inkwash.training.tasks.denoising import computing


class PriorTask:
    """Noised vectors of pictures denoised, beside their captions; the network gives x0 (Ramesh et al. 2022, equation 2)."""

    def __init__(
        self,
        prior: TextPrior,
        vision: CLIPVision,
        source: PixelSource,
        objective: Objective,
        num_micro_batches: int = 1,
        precision: str = "fp32",
        world: World = World(),
    ):
        self.modules: Mapping[str, nn.Module] = {"prior": prior.network}
        self.prior, self.vision, self.source, self.objective = prior, vision, source, objective
        self.num_micro_batches, self.precision, self.world = num_micro_batches, precision, world

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        network = self.prior.network
        device = network.clip_mean.device
        rows, number = self.world.rows(self.source.size), step * self.num_micro_batches + micro
        batch = self.source.batch(number, rng, rows)
        t = self.objective.draw_timesteps(self.source.size, rng)[rows].to(device)
        noise = torch.randn(self.source.size, network.config.vector_dim, generator=rng)[rows].to(device)
        with computing(device, self.precision):
            with torch.no_grad():
                vectors = vectors_of(self.vision, batch.pixels.to(device)).float()
                cond = self.prior.read(batch.captions)
            error = prediction_error(network, network.scaled(vectors), noise, t, cond, SCHEDULE, "x0")
        loss = error.square().mean()
        yield "prior", loss, {"error": loss.item()}


def vectors_of(vision: CLIPVision, pixels: Tensor) -> Tensor:
    """CLIP's vectors (B, E) of pictures (B, 3, S, S) in [-1, 1]."""
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return vision(((pixels + 1) / 2 - mean) / std)[1]
