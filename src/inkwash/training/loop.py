"""One training loop for every model. A step's randomness comes from its number alone, so a run that was
stopped goes on bit-equal from its last checkpoint."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import rich.progress
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor, nn
from torch.optim import Optimizer

from inkwash.files import append_line, sweep, write_text
from inkwash.kernels.adamw import adamw
from inkwash.training.checkpoints import States, load_newest, save_newest
from inkwash.training.distributed import World, whole
from inkwash.training.ema import EMA
from inkwash.training.fused_backward import FusedBackward
from inkwash.training.optimizers import LR_SCHEDULES, OPTIMIZERS, grouped, is_matrix, set_rate
from inkwash.training.sharding import load_shards, save_shards


class Task(Protocol):
    """A training's task. `modules` are saved and resumed; `losses` says, in order, what each of the trained
    ones minimises at a step, and may yield fewer than there are (a discriminator that starts late).

    A task may have `rate_factor(module, parameter)`, by their names: the learning rate times this; and a `source`, whose
    `size` is the number of pictures in a batch.
    """

    modules: Mapping[str, nn.Module]

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]: ...


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a task's training."""

    num_steps: int
    lr: float = 1e-4
    warmup_steps: int = 100
    lr_schedule: str = "constant"  # of LR_SCHEDULES, after the warm-up
    lr_cycles: int = 1
    decay_steps: int = 0  # the last steps, over which the rate falls linearly to a tenth; 0 is none
    num_micro_batches: int = 1  # gradient accumulation
    optimizer: str = "adamw"  # of OPTIMIZERS
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    muon: float = 0.0  # above 0: matrices of transformers are trained by Muon, at this many times the rate
    max_grad_norm: float = 1.0  # 0 is no limit
    ema_decay: float | None = 0.999  # None keeps no average
    # each parameter is stepped as its gradient arrives; needs no accumulation and no limit
    fused_backward: bool = False
    precision: str = "fp32"  # fp16 scales the loss
    save_every: int = 500
    log_every: int = 50
    seed: int = 0

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.num_steps - step) / self.decay_steps if self.decay_steps else 1.0
        progress = max(0.0, (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps))
        scheduled = LR_SCHEDULES[self.lr_schedule](progress, self.lr_cycles)
        return self.lr * warm * scheduled * max(0.1, min(1.0, left))


def generator_for(seed: int, step: int, micro: int = 0) -> torch.Generator:
    """The randomness of one micro-batch of one step."""
    mixed = (seed * 1_000_003 + step) * 1_009 + micro
    return torch.Generator().manual_seed(mixed % 2**63)


AfterStep = Callable[
    [int, Mapping[str, float]], dict[str, float]
]  # steps done, values to log -> more of them


def train(
    task: Task,
    config: LoopConfig,
    folder: Path,
    minutes: float = math.inf,
    after_step: AfterStep = lambda step, logs: {},
    world: World = World(),
    on_start: Callable[[States], None] = lambda states: None,
) -> dict[str, EMA]:
    """Train until `config.num_steps`, or until `minutes` have gone or Ctrl-C or SIGTERM comes; all save first.

    Keeps `state.safetensors`, the one before it, and `log.jsonl` in `folder`, and goes on from there if they exist: from the
    older state, with a warning, where the newer one is damaged. Returns the averages of the trained modules. A loss
    that is not finite skips its update; ten in a row raise FloatingPointError. Raises KeyboardInterrupt after saving when
    it was interrupted. on_start: called once with the states, loaded from the folder, before the first step.
    """
    if config.fused_backward and world.size > 1:
        raise ValueError(f"fused_backward true needs one process, and there are {world.size}")
    states = make_states(task, config)
    lines = folder / "log.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if world.is_first:
        sweep(folder)
    first = load_shards(folder, states, world) if world.sharded else load_newest(folder, states, world)
    on_start(states)
    if world.is_first:
        keep_lines(lines, first)
    world.wait()
    deadline = time.monotonic() + minutes * 60
    bad_in_row = 0
    pictures = getattr(getattr(task, "source", None), "size", 0) * config.num_micro_batches
    with progress_bar(world.is_first, pictures) as bar, interruption() as interrupted:
        line = bar.add_task("", total=config.num_steps, completed=first, losses="")
        step = saved = first
        while step < config.num_steps and not world.any(time.monotonic() >= deadline or interrupted.is_set()):
            logs = one_step(task, config, step, states, world)
            bad_in_row = 0 if all(map(math.isfinite, logs.values())) else bad_in_row + 1
            if bad_in_row == 10:
                raise FloatingPointError(f"the loss was not finite in ten steps up to {step}: {logs}")
            step += 1
            more = after_step(step, logs)
            logs |= more
            if world.is_first and (more or step % config.log_every == 0 or step == config.num_steps):
                append_line(lines, json.dumps({"step": step, **logs}))
            bar.update(line, completed=step, losses=" ".join(f"{k} {v:.4f}" for k, v in logs.items()))
            if step % config.save_every == 0:
                save(folder, step, states, world)
                saved = step
        if step > saved:
            save(folder, step, states, world)
        world.wait()
        if interrupted.is_set():
            raise KeyboardInterrupt
    return dict(states.emas)


def save(folder: Path, step: int, states: States, world: World) -> None:
    """Write the state: the first process all of it, or each its share."""
    if world.sharded:
        save_shards(folder, step, states, world)
    elif world.is_first:
        save_newest(folder, step, states)


def make_states(task: Task, config: LoopConfig) -> States:
    """The parts of a run's state that are saved, at its start."""
    emas = {
        name: EMA(module, config.ema_decay)
        for name, module in task.modules.items()
        if config.ema_decay is not None
    }
    factor_of = getattr(task, "rate_factor", lambda module, parameter: 1.0)
    optimizers = {
        key: optimizer
        for name, module in task.modules.items()
        for key, optimizer in make_optimizers(name, module, config, partial(factor_of, name)).items()
    }
    scaler = torch.amp.GradScaler(device_of(task).type, enabled=config.precision == "fp16")
    return States(task.modules, optimizers, emas, scaler)


def device_of(task: Task) -> torch.device:
    """The device of the trained modules."""
    return next(parameter.device for module in task.modules.values() for parameter in module.parameters())


def one_step(
    task: Task,
    config: LoopConfig,
    step: int,
    states: States,
    world: World = World(),
) -> dict[str, float]:
    """One update of each module that the task gives a loss for; returns the values to log."""
    logs: dict[str, float] = {}
    trained: dict[str, FusedBackward | None] = {}
    for micro in range(config.num_micro_batches):
        for name, loss, values in task.losses(step, micro, generator_for(config.seed, step, micro)):
            if name not in trained:
                task.modules[name].zero_grad(set_to_none=True)
                trained[name] = fused(name, task, config, step, states) if config.fused_backward else None
            # only its own module gets gradients: the generator's loss must not train the discriminator
            parameters = [p for p in task.modules[name].parameters() if p.requires_grad]
            steps = trained[name]
            if steps and not math.isfinite(loss.item()):
                steps.finite = False
            else:
                with steps.during_backward() if steps else nullcontext():
                    scaled = states.scaler.scale(loss / config.num_micro_batches)
                    # what is spread over processes has other leaves while it computes, and trains one module
                    torch.autograd.backward(scaled, inputs=None if world.sharded else parameters)
            for key, value in ({name: loss.item()} | values).items():
                logs[key] = logs.get(key, 0.0) + value / config.num_micro_batches
    for name, steps in sorted(trained.items()):
        module, ema = task.modules[name], states.emas.get(name)
        if steps is None:
            moved = update(name, task, config, step, states, world)
        else:
            moved = steps.moved if steps.finite else None
        if moved is None:
            logs[name] = math.nan  # a scaler takes note of it, and scales less
        elif ema is not None:
            ema.update(module, step, without=moved)
    states.scaler.update()
    return {key: world.mean(value) for key, value in logs.items()}


def update(
    name: str, task: Task, config: LoopConfig, step: int, states: States, world: World
) -> list[Tensor] | None:
    """Step a module by its gradients; the parameters whose averages were moved, None where a gradient is not finite."""
    module = task.modules[name]
    world.mean_gradients(module.parameters())
    optimizers = optimizers_of(name, states)
    for optimizer in optimizers.values():
        states.scaler.unscale_(optimizer)
    norm = whole(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])).item()
    if not math.isfinite(norm):
        return None
    scale = min(1.0, (config.max_grad_norm or math.inf) / (norm + 1e-6))
    set_rates(name, optimizers, config, step)
    averages = averages_of(name, module, states, step)
    return [moved for optimizer in optimizers.values() for moved in adamw(optimizer, scale, *averages)]


def fused(name: str, task: Task, config: LoopConfig, step: int, states: States) -> FusedBackward:
    """Optimizer steps of a module, to be taken during the backward pass."""
    optimizers = optimizers_of(name, states)
    set_rates(name, optimizers, config, step)
    return FusedBackward(optimizers, *averages_of(name, task.modules[name], states, step))


def optimizers_of(name: str, states: States) -> dict[str, Optimizer]:
    """A module's optimizers: its own, and that of its matrices where Muon trains them."""
    return {key: states.optimizers[key] for key in (name, f"{name}.muon") if key in states.optimizers}


def set_rates(name: str, optimizers: Mapping[str, Optimizer], config: LoopConfig, step: int) -> None:
    for key, optimizer in optimizers.items():
        set_rate(optimizer, config.lr_at(step) * (config.muon if key != name else 1.0))


def averages_of(
    name: str, module: nn.Module, states: States, step: int
) -> tuple[dict[Tensor, Tensor], float]:
    """The averages of a module's parameters, and how far they go towards them at a step."""
    ema = states.emas.get(name)
    return ({}, 0.0) if ema is None else (ema.averages(module), ema.share(step))


def make_optimizers(
    name: str, module: nn.Module, config: LoopConfig, factor_of: Callable[[str], float] = lambda name: 1.0
) -> dict[str, Optimizer]:
    """The config's optimizer for a module; with Muon, that for its transformers' matrices and AdamW for the rest."""
    named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
    matrices = [(key, p) for key, p in named if config.muon and is_matrix(key, p)]
    taken = {key for key, _ in matrices}
    rest = grouped(((key, p) for key, p in named if key not in taken), factor_of)
    kind = "adamw" if config.optimizer == "muon" else config.optimizer
    made = {name: OPTIMIZERS[kind](rest, config.lr, config.betas, config.weight_decay)} if rest else {}
    if matrices:
        made[f"{name}.muon"] = OPTIMIZERS["muon"](grouped(matrices, factor_of), config.lr, config.betas, 0.0)
    return made


def keep_lines(log: Path, step: int) -> None:
    """Drop the lines of a log that lie after the step which a run goes on from, and one that a crash cut."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if step_of(line) <= step]
        write_text(log, "".join(f"{line}\n" for line in lines))


def step_of(line: str) -> float:
    """The step that a line of a log is about; infinity where the line is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class Rate(ProgressColumn):
    """Pictures a second. pictures: in a step; nothing is shown where that is not known."""

    def __init__(self, pictures: int):
        super().__init__(Column(no_wrap=True))
        self.pictures = pictures

    def render(self, task: rich.progress.Task) -> Text:
        return Text(f"{self.pictures * task.speed:.3g} pictures/s" if self.pictures and task.speed else "")


def progress_bar(shown: bool = True, pictures: int = 0) -> Progress:
    """Steps, time left, pictures a second and losses on stderr. pictures: in a step."""
    from rich.console import Console

    losses = TextColumn("{task.fields[losses]}")
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), Rate(pictures), losses)
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=1, disable=not shown)


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into an event, so that a step ends and is saved; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
