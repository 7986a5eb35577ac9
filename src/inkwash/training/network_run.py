"""Runs that train a network which is no diffusion model, such as a first stage or CLIP."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from inkwash.data.dataset import Dataset
from inkwash.training.config import DataConfig
from inkwash.training.distributed import World
from inkwash.training.loop import LoopConfig, Task, train
from inkwash.training.methods import Method
from inkwash.training.pictures import read_pictures, split_datasets
from inkwash.training.settings import OnStep
from inkwash.training.trainable import Weights
from inkwash.training.watching import event_writer, plot_losses


@dataclass(frozen=True)
class NetworkRun:
    """A prepared training run of a single network, before its first step.

    write: of the folder and the weights, writes the result and gives its path.
    """

    method: Method
    config: DataConfig
    name: str
    dataset: Dataset
    module: nn.Module
    task: Task
    loop: LoopConfig
    precision: str
    world: World
    write: Callable[[Path, Weights], Path]
    held_out: Dataset | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """All that learn."""
        return list(self.task.modules.values())

    def train(self, on_step: OnStep = lambda step, num_steps, logs: None) -> Path | None:
        """Train from where the run stands to its end, and write the result; its path, None if another process writes it.

        on_step: is told of each step that is done, of how many there are, and of its losses.
        """
        folder, c = Path(self.config.output), self.config
        board = event_writer(folder) if c.tensorboard and self.world.is_first else None

        def after_step(step: int, logs: Mapping[str, float]) -> dict[str, float]:
            if board:
                for name, value in logs.items():
                    board.add_scalar(name, value, step)
            on_step(step, self.loop.num_steps, logs)
            return {}

        emas = train(self.task, self.loop, folder, c.minutes or math.inf, after_step, self.world)
        if not self.world.is_first:
            return None
        if (folder / "log.jsonl").exists():
            plot_losses(folder / "log.jsonl", folder / "loss.png", title="error")
        name = next(name for name, module in self.task.modules.items() if module is self.module)
        if average := emas.get(name):
            self.module.load_state_dict(self.module.state_dict() | average.state_dict())
        return self.write(
            folder, {key: value.detach().cpu() for key, value in self.module.state_dict().items()}
        )


def pictures_of(c: DataConfig, factor: int, side: int, world: World) -> Dataset:
    """The pictures that a network is trained on. Raises ValueError where some are to be held out, which nothing measures."""
    if c.validation:
        raise ValueError(f"validation {c.validation:g} is of diffusion models; give 0")
    examples, rules, batch = read_pictures(c, factor, side)
    return split_datasets(c, examples, rules, batch, world)[0]
