"""Few-step students that regress on their teacher. B batch, C channels, H W latent size, N training steps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.models.unet import UNet
from inkwash.nn.embeddings import timestep_embedding
from inkwash.training.distill_config import DistillConfig
from inkwash.training.distillation import Levels, boundary, noised, one_step_target, own_weight, predicted
from inkwash.training.distributed import World
from inkwash.training.objectives import Objective
from inkwash.training.sources import Batch, Source
from inkwash.training.tasks.denoising import Network, PictureTask, computing
from inkwash.training.trainable import Learner
from inkwash.weights.few_steps import FewSteps

Losses = Iterator[tuple[str, Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Drawn:
    """A batch and the random numbers for its rows, on the network's device."""

    batch: Batch
    rng: torch.Generator
    size: int  # pictures in the batch of all processes
    rows: slice
    objective: Objective

    def noise(self) -> Tensor:
        """(B, C, H, W)."""
        shape = (self.size, *self.batch.latent.shape[1:])
        return self.objective.draw_noise(shape, self.rng)[self.rows].to(self.batch.latent.device)

    def uniform(self) -> Tensor:
        """(B,) in [0, 1), spread over the batch of all processes."""
        u = (
            torch.randperm(self.size, generator=self.rng) + torch.rand(self.size, generator=self.rng)
        ) / self.size
        return u[self.rows].to(self.batch.latent.device)


class Distillation(PictureTask, ABC):
    """Distillation of a teacher, the model itself before training, into a student: a task of the loop.

    unet: the student, with `trainable` attached to it or part of it. Raises ValueError for a prediction that has no x0, and
    for more levels than there are timesteps.
    """

    preset: ClassVar[str]
    levels_of: ClassVar[tuple[str, ...]] = (
        "draw_steps",
    )  # options whose product is the number of distinct noise levels

    def __init__(
        self,
        unet: UNet,
        teacher: UNet,
        config: DistillConfig,
        trainable: Learner,
        source: Source,
        objective: Objective,
        schedule: NoiseSchedule,
        num_micro_batches: int = 1,
        precision: str = "fp32",
        world: World = World(),
    ):
        if objective.prediction not in ("eps", "v", "x0"):
            raise ValueError(
                f"a model that predicts {objective.prediction} can't be distilled; eps, v and x0 can"
            )
        given = {name: getattr(config, name) for name in self.levels_of}
        if (levels := math.prod(given.values())) > (num := len(schedule.alphas_cumprod)):
            said = " times ".join(f"{name} {value}" for name, value in given.items())
            raise ValueError(
                f"{said} are {levels} noise levels, and there are {num} timesteps; give fewer steps"
            )
        super().__init__(unet, trainable, source, objective, schedule, num_micro_batches, precision, world)
        self.teacher, self.config = teacher, config

    @property
    def few_steps(self) -> FewSteps:
        """Sampling settings of the result."""
        steps, scales = self.config.draw_steps, self.config.guidance
        if self.unet.config.time_cond_dim is None:
            return FewSteps(self.preset, "", steps)
        preset = "lcm" if self.preset == "lcm-lora" else self.preset
        return FewSteps(preset, "", steps, cfg_scale=(scales[0] + scales[-1]) / 2)

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        rows, number = self.world.rows(self.source.size), step * self.num_micro_batches + micro
        # attached until gradients are computed, since checkpointing computes the network again for them
        with self.trainable.attached():
            batch = self.source.batch(number, rng, rows)
            device = next(self.unet.parameters()).device
            cond, uncond = ({k: v.to(device) for k, v in some.items()} for some in (batch.cond, batch.uncond))
            batch = replace(batch, latent=batch.latent.to(device).float(), cond=cond, uncond=uncond)
            yield from self.lesson(step, Drawn(batch, rng, self.source.size, rows, self.objective))

    @abstractmethod
    def lesson(self, step: int, drawn: Drawn) -> Losses:
        """The losses of a batch."""

    def levels(self, t: Tensor) -> Levels:
        return Levels.at(t, self.schedule)

    def student_levels(self, k: Tensor, parts: int = 1) -> Levels:
        """The levels (B,) that steps end at, as in the schedule turbo: k = 0 is a picture, draw_steps * parts is noise."""
        num = len(self.schedule.alphas_cumprod)
        return self.levels((k.double() * (num / (self.config.draw_steps * parts)) - 1).round().long())

    def x0_eps(
        self, unet: UNet, z: Tensor, level: Levels, cond: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A network's predictions, in float32."""
        with computing(z.device, self.precision):
            out = Network(unet)(z, level.t, **cond)
        return predicted(self.objective.prediction, out, z, level)

    @torch.no_grad()
    def guided(self, z: Tensor, level: Levels, batch: Batch, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's x0 and eps, guided by scales (B,); one that sees the scale predicts once (Meng et al. 2023, 3.2)."""
        if self.teacher.config.time_cond_dim is not None:
            return self.x0_eps(self.teacher, z, level, self.told(batch, scale))
        cond, uncond = (self.x0_eps(self.teacher, z, level, some) for some in (batch.cond, batch.uncond))
        weight = scale.view(-1, 1, 1, 1)
        return torch.lerp(uncond[0], cond[0], weight), torch.lerp(uncond[1], cond[1], weight)

    def scales(self, drawn: Drawn) -> Tensor:
        """Guidance scales (B,)."""
        low, high = self.config.guidance[0], self.config.guidance[-1]
        return low + (high - low) * drawn.uniform()

    def told(self, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        """The student's conditioning: the prompt, and the scale (B,) where it has an input for that."""
        dim = self.unet.config.time_cond_dim
        if dim is None:
            return batch.cond
        return batch.cond | {
            "time_cond": timestep_embedding(1000 * (scale - 1), dim, sin_first=True, freq_shift=1)
        }

    def regression(self, error: Tensor, weight: Tensor, batch: Batch) -> Losses:
        """The loss of errors (B, C, H, W), weighed (B, 1, 1, 1)."""
        own = torch.ones_like(error[:, 0, 0, 0]) if batch.weight is None else batch.weight.to(error)
        mask = None if batch.mask is None else batch.mask.to(error)
        plain = self.objective.mean(error * weight.sqrt(), mask)
        yield self.trainable.name, (plain * own).mean(), {"error": plain.mean().item()}


class Guidance(Distillation):
    """One prediction for two: the guided one of the teacher, at any level (Meng et al. 2023, section 3.1)."""

    preset = "guided"

    def lesson(self, step: int, drawn: Drawn) -> Losses:
        batch, scale = drawn.batch, self.scales(drawn)
        t = self.objective.draw_timesteps(drawn.size, drawn.rng)[drawn.rows].to(scale.device)
        level = self.levels(t)
        z = noised(batch.latent, drawn.noise(), level)
        target, _ = self.guided(z, level, batch, scale)
        x0, _ = self.x0_eps(self.unet, z, level, self.told(batch, scale))
        yield from self.regression(x0 - target, own_weight(self.objective.prediction, level), batch)


class Progressive(Distillation):
    """One step for several of the teacher's, with its guidance (Salimans and Ho 2022, algorithm 2; Meng et al. 2023)."""

    preset = "lightning"
    levels_of = ("draw_steps", "teacher_steps")

    def lesson(self, step: int, drawn: Drawn) -> Losses:
        batch, scale, parts = drawn.batch, self.scales(drawn), self.config.teacher_steps
        k = (drawn.uniform() * self.config.draw_steps).long() + 1
        ways = [self.student_levels(k * parts - j, parts) for j in range(parts + 1)]
        z = after = noised(batch.latent, drawn.noise(), ways[0])
        for level, then in pairwise(ways):
            after = noised(*self.guided(after, level, batch, scale), then)
        target = one_step_target(z, after, ways[0], ways[-1])
        x0, _ = self.x0_eps(self.unet, z, ways[0], self.told(batch, scale))
        yield from self.regression(x0 - target, own_weight(self.objective.prediction, ways[0]), batch)


class Consistency(Distillation):
    """Consistency distillation: the same picture from any point of the teacher's trajectory (Luo et al. 2023, algorithm 1).

    The target is the student's own, without an average of it (Song and Dhariwal 2024, section 3.2).
    """

    preset = "lcm-lora"
    levels_of = ("solver_steps",)

    def lesson(self, step: int, drawn: Drawn) -> Losses:
        batch, scale = drawn.batch, self.scales(drawn)
        num, steps = len(self.schedule.alphas_cumprod), self.config.solver_steps
        k = (drawn.uniform() * steps).long() + 1
        t, below = (i * num // steps - 1 for i in (k, k - 1))
        level, then = self.levels(t), self.levels(below.clamp(min=0))
        z, told = noised(batch.latent, drawn.noise(), level), self.told(batch, scale)
        with torch.no_grad():
            before = noised(*self.guided(z, level, batch, scale), then)
            target = boundary(before, self.x0_eps(self.unet, before, then, told)[0], then.t)
        made = boundary(z, self.x0_eps(self.unet, z, level, told)[0], t)
        yield from self.regression(made - target, torch.ones_like(level.signal), batch)
