"""`mini-turbo`: the U-Net of `mini` taught to draw in four steps what it draws in twenty with guidance.

B batch, C channels, H W latent size, n steps of the teacher.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule
from inkwash.explain.tiles import contact_sheet
from inkwash.models.unet import UNet
from inkwash.nn.attention import Context
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.images import to_images
from inkwash.pipeline.model import Model
from inkwash.pipeline.presets import PRESETS
from inkwash.training.distillation import Levels, noised, one_step_target, predicted
from inkwash.training.loop import LoopConfig
from inkwash.weights.few_steps import FewSteps
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini.classifier import Judge
from recipes.mini.drawing import drawn
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.tasks import Beside, bf16

NAME, PRESET, STEPS = "turbo", "lightning", 4
TRAINING = LoopConfig(3_000, log_every=20, **SHORT)
BATCH = 1024
WAYS = 16  # batches of the teacher's ways that are kept


class Ways(nn.Module):
    """The teacher's ways from noise to pictures, and the steps that a student is to take along them.

    As a module it holds nothing but the ways, so that they are saved with a training.

    One guided way of n steps gives the student a lesson at each of its levels: to come in one step as far as the teacher
    in n / num_steps (progressive distillation, Salimans and Ho 2022, in one stage; guidance as in Meng et al. 2023). The
    teacher solves the flow by DPM-Solver++(2M). It starts from noise, or from where the student's own first steps led, so
    that the student learns to mend what it did (Ross et al. 2011). `refresh` replaces the oldest ways.
    """

    def __init__(
        self,
        teacher: UNet,
        student: UNet,
        data: Captioned,
        schedule: NoiseSchedule,
        prediction: str,
        cfg_scale: float,
        batch: int,
        num_steps: int = STEPS,
        teacher_steps: int = 20,
        kept: int = WAYS,
    ):
        super().__init__()
        self.networks, self.data, self.prediction = (teacher, student), data, prediction
        self.cfg_scale, self.batch, self.kept = cfg_scale, batch, kept
        self.n, self.stride = teacher_steps, teacher_steps // num_steps
        device, shape = data.means.device, data.means.shape[1:]
        t = torch.arange(self.n, -1, -1, dtype=torch.float64) * (len(schedule.alphas_cumprod) / self.n) - 1
        self.levels = Levels.at(t.round().long().to(device), schedule)
        self.ends = SCHEDULES["turbo"](self.n, schedule)[:-1]
        self.z: Tensor
        self.rows: Tensor
        self.first: Tensor
        self.register_buffer("z", torch.zeros(self.n + 1, kept * batch, *shape, device=device))
        for name in ("rows", "first"):
            self.register_buffer(name, torch.zeros(kept * batch, dtype=torch.long, device=device))

    @property
    def teacher(self) -> UNet:
        return self.networks[0]

    @property
    def student(self) -> UNet:
        return self.networks[1]

    def level(self, i: int, num: int) -> Levels:
        at = self.levels[slice(i, i + 1)]
        return Levels(at.t.expand(num), at.signal, at.spread)

    @torch.no_grad()
    def refresh(self, turn: int) -> None:
        """Put a batch of new ways in the place of the oldest."""
        place = slice(turn % self.kept * self.batch, (turn % self.kept + 1) * self.batch)
        # the first ones are all the teacher's; then of four, one from each of the student's points
        first = 0 if turn < self.kept else turn % (self.n // self.stride) * self.stride
        rows = self.data.draw(self.batch, dropout=0.05)[1]
        z = torch.randn(self.batch, *self.z.shape[2:], device=rows.device)
        with bf16(rows.device):
            context = Context(self.data.contexts[rows])
            for i in range(0, first, self.stride):
                out = self.student(nhwc(z), self.level(i, self.batch).t, context)
                x0, eps = predicted(self.prediction, out, z, self.level(i, 1))
                z = noised(x0, eps, self.level(i + self.stride, 1))
            self.rows[place], self.first[place], self.z[first, place] = rows, first, z
            both = Context(
                torch.cat([self.data.contexts[rows], self.data.contexts[:1].expand_as(context.tokens)])
            )
            before = None
            for i in range(first, self.n):
                x0 = self.guided(z, i, both)
                z, before = self.solve(z, x0, before, i), x0
                self.z[i + 1, place] = z

    def guided(self, z: Tensor, i: int, context: Context) -> Tensor:
        """The teacher's x0 with guidance. context: with the prompts, then without."""
        out = self.teacher(nhwc(torch.cat([z, z])), self.level(i, 2 * len(z)).t, context).float()
        cond, uncond = out.chunk(2)
        out = torch.lerp(uncond, cond, self.cfg_scale)
        return predicted(self.prediction, out, z, self.level(i, 1))[0]

    def solve(self, z: Tensor, x0: Tensor, before: Tensor | None, i: int) -> Tensor:
        """The next z, by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). before: the x0 of the step before this one."""
        if before is not None and i + 1 < self.n:
            sigmas = self.ends[i - 1 : i + 2].tolist()
            lambdas = [-torch.tensor(sigma, dtype=torch.float64).log().item() for sigma in sigmas]
            h_before, h = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
            x0 = x0 + h / (2 * h_before) * (x0 - before)
        level, then = self.level(i, 1), self.level(i + 1, 1)
        return then.signal * x0 + then.spread / level.spread * (z - level.signal * x0)

    def loss(self, num: int) -> Tensor:
        """The student's error of x0 over `num` lessons, half of them at its own levels, weighed by min(SNR + 1, 5)."""
        device = self.rows.device
        chosen = torch.randint(len(self.rows), (num,), device=device)
        place, own = torch.rand(2, num, device=device)
        first = self.first[chosen]
        i = first + (place * (self.n - first)).long()
        i = torch.where(own < 0.5, i // self.stride * self.stride, i)
        j = (i + self.stride).clamp(max=self.n)
        z, level = self.z[i, chosen], self.levels[i]
        target = one_step_target(z, self.z[j, chosen], level, self.levels[j])
        with bf16(device):
            out = self.student(nhwc(z), level.t, self.data.contexts[self.rows[chosen]])
        x0, _ = predicted(self.prediction, out, z, level)
        weight = level.spread.square().reciprocal().clamp(max=5.0)  # of v's own errors, where it is not cut
        return (weight * (x0 - target).square()).mean()

    def lessons(self, every: int) -> Callable[[int], Tensor]:
        """The loss of each step of a training, with a batch of new ways every so many steps."""

        def loss(step: int) -> Tensor:
            if not self.z.any():
                for turn in range(self.kept):
                    self.refresh(turn)
            elif step % every == 0:
                self.refresh(self.kept + step // every)
            return self.loss(self.batch)

        return loss


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def make_ways(
    model: Model,
    data: Captioned,
    cfg_scale: float,
    batch: int,
    compiled: bool = False,
    teacher_steps: int = 20,
    kept: int = WAYS,
) -> Ways:
    """The model as its own student. kept: batches of the teacher's ways that are kept."""
    student = channels_last(copy.deepcopy(model.unet)).float().requires_grad_(True).train()
    teacher = channels_last(copy.deepcopy(model.unet)).requires_grad_(False).eval()
    if compiled:
        student.compile()
        teacher.compile()
    return Ways(
        teacher,
        student,
        data,
        model.schedule,
        model.prediction,
        cfg_scale,
        batch,
        teacher_steps=teacher_steps,
        kept=kept,
    )


def write(ways: Ways, model: Model, start: Path) -> Path:
    """The student as a folder beside `start`, which says how it draws; its path."""
    size = model.default_size // model.autoencoder.config.factor
    said = FewSteps(PRESET, "", ways.n // ways.stride).written
    return parts.write_variant(ways.student, NAME, start, size, said)


SHOWN = (
    "a red taxi, noto style",
    "a rocket, twemoji style",
    "a pizza, fluent style",
    "a penguin, emojione style",
)
COLUMNS = [*SHOWN, *measures.SCENES[:4]]


def sheet(turbo: Model, base: Model, cfg_scale: float) -> Image.Image:
    """Rows: the base at 20 steps, then the student at 1, 2, 4 and 8; columns: prompts, each with its own seed."""
    rows = [drawn(base, COLUMNS, Beside(), cfg_scale=cfg_scale)]
    rows += [drawn(turbo, COLUMNS, Beside(), steps=num, **few_steps()) for num in (1, 2, 4, 8)]
    return contact_sheet(to_images(torch.cat(rows)), len(COLUMNS))


def few_steps() -> dict[str, Any]:
    """The options of the student's preset, but for the number of steps."""
    preset = PRESETS[PRESET]
    return {"cfg_scale": preset.cfg_scale, "sampler": preset.sampler, "schedule": preset.schedule}


def figures(
    turbo: Model,
    base: Model,
    judge: Judge,
    names: Sequence[str],
    data: Path,
    cfg_scale: float,
    steps: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, dict[str, float]]:
    """Recognition of the fixed prompts by the judge at each number of steps, with seconds of drawing, beside the base."""
    guided: dict[str, Any] = {"cfg_scale": cfg_scale}
    ways = [(base, num, guided) for num in (measures.STEPS, *steps)]
    ways += [(turbo, num, few_steps()) for num in steps]
    made: dict[str, dict[str, float]] = {}
    for model, num, options in ways:
        draw = partial(drawn, model, seen=Beside(), steps=num, **options)
        draw(["a crown"])  # the first call is slow
        made[f"{model.name} at {num} steps"] = measures.judged_prompts(judge, names, data, draw)
    return made
