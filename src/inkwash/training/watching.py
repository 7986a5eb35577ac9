"""What a run shows while it goes on and at its end: validation losses, sample sheets, TensorBoard, a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from inkwash.explain.plot import GREY, GRID, INK, PAPER, SEAL, fitting, font
from inkwash.files import atomic
from inkwash.pipeline.api import Pipeline
from inkwash.training.loop import generator_for
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.tasks.distillation import Distillation
from inkwash.training.trainable import Trainable

VALIDATION_SEED = 1_000_003  # its noise is never a training step's


class Watcher:
    """Called after every step: draws samples, measures the validation loss, and writes TensorBoard's events.

    every: steps between samples and validations; 0 is never. options: of the samples. validation: a task
    over pictures that are not trained on.
    """

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
    ):
        self.folder, self.model, self.trainable, self.every = folder, model, trainable, every
        self.prompts, self.options = prompts, options
        self.validation, self.is_first = validation, is_first
        self.board = event_writer(folder) if tensorboard and is_first else None

    def __call__(self, step: int, logs: Mapping[str, float]) -> dict[str, float]:
        values: dict[str, float] = {}
        if self.every and step % self.every == 0:
            if self.validation:
                values["validation"] = validation_loss(self.validation)
            if self.is_first and self.prompts:
                self.draw(step)
        if self.board:
            for name, value in {**logs, **values}.items():
                self.board.add_scalar(name, value, step)
        return values

    def draw(self, step: int) -> None:
        """A sheet of one picture a prompt, each always of the same seed."""
        model = self.trainable.for_sampling(self.model, self.folder)
        training = self.model.unet.training
        self.model.unet.eval()
        with self.trainable.attached():
            images = [
                model.text_to_image(prompt, seed=k, **self.options)[0]
                for k, prompt in enumerate(self.prompts)
            ]
        self.model.unet.train(training)
        place = self.folder / "samples" / f"step-{step:07d}.png"
        with atomic(place) as partial:
            labelled(images, self.prompts, f"step {step}").save(partial)


@torch.no_grad()
def validation_loss(task: DenoisingTask | Distillation, num: int = 8) -> float:
    """The mean error over batches of held-out pictures, always with the same noise and timesteps."""
    errors = []
    for k in range(num):
        for _, _, values in task.losses(k, 0, generator_for(VALIDATION_SEED, k)):
            errors += [values["error"]] if "error" in values else []
    return task.world.mean(sum(errors) / len(errors))


def labelled(images: Sequence[Image.Image], texts: Sequence[str], title: str) -> Image.Image:
    """The pictures side by side, at most four in a row, each with its text below."""
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    width, height = max(width, 160), max(height, 160)
    across = min(4, len(images))
    down = -(-len(images) // across)
    sheet = Image.new("RGB", (16 + across * (width + 16), 48 + down * (height + 40)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((16, 12), title, INK, font(18))
    for k, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = 16 + k % across * (width + 16), 48 + k // across * (height + 40)
        sheet.paste(
            image.resize((width, height), Image.Resampling.NEAREST) if image.width < 64 else image, (x, y)
        )
        draw.text((x, y + height + 6), fitting(draw, text, 13, width), GREY, font(13))
    return sheet


def plot_losses(
    log: Path,
    path: Path,
    size: tuple[int, int] = (900, 480),
    title: str = "mean squared error of the prediction",
) -> None:
    """Write a PNG of the error by step, smoothed, and of the validation's where there is one; nothing for a short log."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    curves = {
        name: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)]
        for name in ("error", "validation")
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return
    smooth = {name: smoothed(points) if name == "error" else points for name, points in curves.items()}
    values = [value for points in smooth.values() for _, value in points]
    last = max(points[-1][0] for points in smooth.values())
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    left, top, right, bottom = 84, 48, size[0] - 24, size[1] - 56
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * (value - low) / (high - low)

    for k in range(5):
        value = low + (high - low) * k / 4
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 8, y), f"{value:.4g}", GREY, font(13), anchor="rm")
        draw.text(
            (place(last * k / 4, low)[0], bottom + 8), f"{round(last * k / 4)}", GREY, font(13), anchor="ma"
        )
    for (name, points), colour in zip(smooth.items(), (INK, SEAL), strict=False):
        draw.line([place(*point) for point in points], colour, 2)
        draw.text((right, 14 if name == "error" else 30), name, colour, font(14), anchor="ra")
    draw.text((left, 14), title, INK, font(15))
    draw.text(((left + right) / 2, size[1] - 12), "step", INK, font(14), anchor="ms")
    with atomic(path) as partial:
        image.save(partial, "PNG")


def smoothed(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value averaged with those before it, over about a twentieth of all."""
    weight, made, average = min(0.9, 20 / max(20, len(points))), [], points[0][1]
    for step, value in points:
        average += max(weight, 1 / (len(made) + 1)) * (value - average)
        made.append((step, average))
    return made


def event_writer(folder: Path):  # of a package that may be missing
    """TensorBoard's writer. Raises ValueError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard true needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")
