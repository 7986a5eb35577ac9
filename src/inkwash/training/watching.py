"""Figures and pictures of a run, during it and at its end: validation losses, sample sheets, TensorBoard, a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from inkwash.explain.drawing import write_plots
from inkwash.explain.plots import curves
from inkwash.explain.tiles import labelled_sheet
from inkwash.files import atomic
from inkwash.pipeline.api import Pipeline
from inkwash.training.ema import EMA
from inkwash.training.judging import Judge, averaged
from inkwash.training.loop import generator_for
from inkwash.training.seen_samples import draw_seen
from inkwash.training.sources import PictureSource
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.tasks.distillation import Distillation
from inkwash.training.trainable import Trainable

VALIDATION_SEED = 1_000_003  # its noise is never a training step's


class Watcher:
    """Called after every step: draws samples, measures the validation loss, and writes TensorBoard's events.

    every: steps between samples; 0 is never. options: of the samples. validation: a task over pictures that are not trained
    on, measured every `validate_every` steps and after the `last` one. judge: of pictures that are drawn every `judge_every`
    steps. source: of a network that sees more than prompts, by whose pictures it is sampled.
    """

    emas: Mapping[str, EMA] = {}  # of the run

    def __init__(
        self,
        folder: Path,
        model: Pipeline,
        trainable: Trainable,
        every: int,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        validation: DenoisingTask | Distillation | None = None,
        tensorboard: bool = False,
        is_first: bool = True,
        judge: Judge | None = None,
        judge_every: int = 0,
        validate_every: int = 1,
        last: int = 0,
        source: PictureSource | None = None,
    ):
        self.folder, self.model, self.trainable, self.every = folder, model, trainable, every
        self.prompts, self.options = prompts, options
        self.validation, self.is_first = validation, is_first
        self.judge, self.judge_every = judge, judge_every
        self.validate_every, self.last, self.source = validate_every, last, source
        self.board = event_writer(folder) if tensorboard and is_first else None

    def __call__(self, step: int, logs: Mapping[str, float]) -> dict[str, float]:
        values: dict[str, float] = {}
        if self.validation and (step % self.validate_every == 0 or step == self.last):
            values["validation"] = validation_loss(self.validation)
        if self.every and step % self.every == 0 and self.is_first and (self.prompts or self.source):
            self.draw(step)
        if self.judge and step % self.judge_every == 0:
            values |= self.judged(self.judge)
        if self.board:
            for name, value in {**logs, **values}.items():
                self.board.add_scalar(name, value, step)
        return values

    def judged(self, judge: Judge) -> dict[str, float]:
        """Figures of pictures that the averaged weights draw."""
        training, options = self.model.unet.training, dict(self.options)

        def draw(seeds: Sequence[int]) -> list[Image.Image]:
            return self.model.text_to_image("", batch_size=len(seeds), seed=seeds[0], **options)

        self.model.unet.eval()
        with averaged(self.trainable.module, self.emas.get(self.trainable.name)), self.trainable.attached():
            figures = judge(draw)
        self.model.unet.train(training)
        return figures

    def draw(self, step: int) -> None:
        """Draw a sheet of one picture a prompt, or a training picture, with fixed seeds."""
        model, labels = self.trainable.for_sampling(self.model, self.folder), self.prompts
        training = self.model.unet.training
        self.model.unet.eval()
        if self.source:
            images, labels = draw_seen(model, self.trainable, self.source, **self.options)
        else:
            with self.trainable.attached():
                images = [
                    model.text_to_image(prompt, seed=k, **self.options)[0]
                    for k, prompt in enumerate(self.prompts)
                ]
        self.model.unet.train(training)
        place = self.folder / "samples" / f"step-{step:07d}.png"
        with atomic(place) as partial:
            labelled_sheet(images, labels, f"step {step}").save(partial)


@torch.no_grad()
def validation_loss(task: DenoisingTask | Distillation, num: int = 8) -> float:
    """The mean error over batches of held-out pictures, with fixed noise and timesteps."""
    errors = []
    for k in range(num):
        for _, _, values in task.losses(k, 0, generator_for(VALIDATION_SEED, k)):
            errors += [values["error"]] if "error" in values else []
    return task.world.mean(sum(errors) / len(errors))


def plot_losses(
    log: Path,
    path: Path,
    title: str = "mean squared error of the prediction",
    names: Sequence[str] = ("error", "validation"),
) -> None:
    """Draw the log's columns by step, the error smoothed, as PNG or SVG; nothing for those with fewer than two values."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    lines = {
        name: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)] for name in names
    }
    lines = {
        name: smoothed(points) if name == "error" else points
        for name, points in lines.items()
        if len(points) > 1
    }
    if lines:
        write_plots([curves(lines, "step", title)], path)


def smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value averaged with those before it, over about a twentieth of all."""
    weight, made, average = min(0.9, 20 / max(20, len(points))), [], points[0][1]
    for step, value in points:
        average += max(weight, 1 / (len(made) + 1)) * (value - average)
        made.append((step, average))
    return made


def event_writer(folder: Path):  # of a package that may be missing
    """TensorBoard's writer."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard")
