"""Merges and trainings in a drawing process, and their progress."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from inkwash.files import atomic
from inkwash.serve.cells import thumbnail
from inkwash.serve.errors import Cancelled

EVERY = 0.5  # seconds between two reports
MOST_LOSSES = 400  # points of a curve
MOST_LINES = 12


class Report:
    """Progress reports of a job. folder: the job's own, for samples. cancelled: ids of the jobs that are to end."""

    def __init__(
        self, id: str, folder: Path, send: Callable[[Mapping[str, Any]], None], cancelled: Collection[str]
    ):
        self.id, self.folder, self.send, self.ids = id, folder, send, cancelled
        self.losses: list[tuple[int, float]] = []
        self.log: list[str] = []
        self.samples = 0
        self.last = 0.0

    @property
    def cancelled(self) -> bool:
        return self.id in self.ids

    def say(self, line: str) -> None:
        self.log = [*self.log, line][-MOST_LINES:]

    def lose(self, step: int, loss: float) -> None:
        """A point of the curve, which is thinned out where it has too many."""
        self.losses.append((step, loss))
        if len(self.losses) > MOST_LOSSES:
            self.losses = self.losses[::2]

    def show(self, sheets: list[Path]) -> None:
        """Have the sample sheets that are new where the job's pictures are."""
        for k, sheet in enumerate(sheets[self.samples :], self.samples):
            self.folder.mkdir(parents=True, exist_ok=True)
            with Image.open(sheet) as image:
                thumbnail(image, self.folder / f"{k}.webp")
            copy(sheet, self.folder / f"{k}.png")
        self.samples = len(sheets)

    def tell(self, step: int, num_steps: int) -> None:
        """Send how far the job is, though not too often."""
        if step < num_steps and time.monotonic() - self.last < EVERY:
            return
        self.last = time.monotonic()
        told = {"step": step, "num_steps": num_steps, "losses": self.losses, "log": self.log}
        self.send({"event": "step", "id": self.id, "samples": self.samples, **told})


def copy(source: Path, target: Path) -> None:
    """Copy a file, whose name at the target is there once it is whole."""
    with atomic(target) as partial:
        shutil.copyfile(source, partial)


def merge(report: Report, recipe: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Merge models by a recipe into a file. Raises ModelFileError, and Cancelled."""
    from inkwash.merge.making import make
    from inkwash.merge.recipe import checked

    def on_tensor(done: int, total: int) -> None:
        if report.cancelled:
            raise Cancelled
        if done == total:
            report.say(f"wrote {output.name}, {total} tensors")
        report.tell(done, total)

    output.parent.mkdir(parents=True, exist_ok=True)
    make(checked(recipe, "the merge"), output, on_tensor=on_tensor)
    return {"pictures": []}


def train(report: Report, method: str, config: Mapping[str, Any], results: Path) -> dict[str, Any]:
    """Train by a method, from where its run stands, and copy what was made into a folder.

    A job that is cancelled saves its state, and ends by KeyboardInterrupt.
    """
    from inkwash.training.methods import METHODS
    from inkwash.training.run import run

    made = METHODS[method].config.model_validate(config)
    folder = Path(made.output)
    earlier = folder / "log.jsonl"
    for row in map(json.loads, earlier.read_text().splitlines() if earlier.exists() else []):
        report.lose(row["step"], loss_of(row))

    def on_step(step: int, num_steps: int, logs: Mapping[str, float]) -> None:
        if step % made.log_every == 0 or step == num_steps:
            report.lose(step, loss_of(logs))
            report.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in logs.items()))
        report.show(sorted((folder / "samples").glob("*.png")))
        report.tell(step, num_steps)
        if report.cancelled:
            signal.raise_signal(signal.SIGINT)  # the loop ends this step, saves, and stops

    path = run(method, made, on_step)
    if path is None:
        raise ValueError("another process has written the result")
    results.mkdir(parents=True, exist_ok=True)
    copy(path, results / path.name)
    report.say(f"wrote {results.name}/{path.name}")
    report.last = 0.0
    report.tell(made.steps, made.steps)
    return {"pictures": []}


def loss_of(values: Mapping[str, Any]) -> float:
    """The error of the prediction, else the first of a step's values."""
    return float(values.get("error", next((v for k, v in values.items() if k != "step"), 0.0)))
