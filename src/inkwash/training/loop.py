"""One training loop for every model. A step's randomness comes from its number alone, so a run that was
stopped goes on bit-equal from its last checkpoint."""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from inkwash.files import append_line, sweep, write_text
from inkwash.kernels.adamw import adamw
from inkwash.training.checkpoints import load_state, save_state
from inkwash.training.ema import EMA


class Task(Protocol):
    """What is trained. `modules` are saved and resumed; `losses` says, in order, what each of the trained
    ones minimises at a step, and may yield fewer than there are (a discriminator that starts late)."""

    modules: Mapping[str, nn.Module]

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]: ...


@dataclass(frozen=True)
class LoopConfig:
    """How a task is trained."""

    num_steps: int
    lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int = 0  # the last steps, over which the rate falls linearly to a tenth; 0 is constant
    num_micro_batches: int = 1  # gradient accumulation
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    muon: float = 0.0  # above 0: matrices of transformers are trained by Muon, at this many times the rate
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    save_every: int = 500
    log_every: int = 50
    seed: int = 0

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.num_steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.lr * warm * max(0.1, min(1.0, left))


def generator_for(seed: int, step: int, micro: int = 0) -> torch.Generator:
    """The randomness of one micro-batch of one step."""
    mixed = (seed * 1_000_003 + step) * 1_009 + micro
    return torch.Generator().manual_seed(mixed % 2**63)


def train(task: Task, config: LoopConfig, folder: Path, minutes: float = math.inf) -> dict[str, EMA]:
    """Train until `config.num_steps`, or until `minutes` have gone or Ctrl-C is pressed; both save first.

    Keeps `state.safetensors` (replaced at each save) and `log.jsonl` in `folder`, and goes on from there if
    they exist. Returns the averages of the trained modules. A loss that is not finite skips its update;
    ten in a row raise FloatingPointError. Raises KeyboardInterrupt after saving when it was interrupted.
    """
    emas = {name: EMA(module, config.ema_decay) for name, module in task.modules.items()}
    optimizers = {
        key: optimizer
        for name, module in task.modules.items()
        for key, optimizer in make_optimizers(name, module, config).items()
    }
    state, log = folder / "state.safetensors", folder / "log.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    first = load_state(state, task.modules, optimizers, emas)[0] if state.exists() else 0
    keep_lines(log, first)
    deadline = time.monotonic() + minutes * 60
    bad_in_row = 0
    with progress_bar() as bar, interruption() as interrupted:
        line = bar.add_task("", total=config.num_steps, completed=first, losses="")
        step = first
        while step < config.num_steps and time.monotonic() < deadline and not interrupted.is_set():
            logs = one_step(task, config, step, optimizers, emas)
            bad_in_row = 0 if all(map(math.isfinite, logs.values())) else bad_in_row + 1
            if bad_in_row == 10:
                raise FloatingPointError(f"the loss was not finite in ten steps up to {step}: {logs}")
            step += 1
            if step % config.log_every == 0 or step == config.num_steps:
                append_line(log, json.dumps({"step": step, **logs}))
                bar.update(line, completed=step, losses=" ".join(f"{k} {v:.4f}" for k, v in logs.items()))
            if step % config.save_every == 0:
                save_state(state, step, task.modules, optimizers, emas)
        if step > first:
            save_state(state, step, task.modules, optimizers, emas)
        if interrupted.is_set():
            raise KeyboardInterrupt
    return emas


def one_step(
    task: Task,
    config: LoopConfig,
    step: int,
    optimizers: Mapping[str, torch.optim.Optimizer],
    emas: Mapping[str, EMA],
) -> dict[str, float]:
    """One update of each module that the task gives a loss for; returns the values to log."""
    logs: dict[str, float] = {}
    trained: set[str] = set()
    for micro in range(config.num_micro_batches):
        for name, loss, values in task.losses(step, micro, generator_for(config.seed, step, micro)):
            if name not in trained:
                task.modules[name].zero_grad(set_to_none=True)
                trained.add(name)
            # only its own module gets gradients: the generator's loss must not train the discriminator
            parameters = [p for p in task.modules[name].parameters() if p.requires_grad]
            torch.autograd.backward(loss / config.num_micro_batches, inputs=parameters)
            for key, value in ({name: loss.item()} | values).items():
                logs[key] = logs.get(key, 0.0) + value / config.num_micro_batches
    for name in trained:
        module, ema = task.modules[name], emas[name]
        norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()
        if not math.isfinite(norm):
            logs[name] = math.nan
            continue
        scale = min(1.0, config.max_grad_norm / (norm + 1e-6))
        for key in (name, f"{name}.muon"):
            for group in optimizers[key].param_groups if key in optimizers else ():
                group["lr"] = config.lr_at(step) * (config.muon if key != name else 1.0)
        if (muon := optimizers.get(f"{name}.muon")) is not None:
            for group in muon.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None if parameter.grad is None else parameter.grad * scale
            muon.step()
        moved = adamw(optimizers[name], scale, ema.averages(module), ema.share(step))
        ema.update(module, step, without=moved)
    return logs


def make_optimizers(name: str, module: nn.Module, config: LoopConfig) -> dict[str, torch.optim.Optimizer]:
    """AdamW for a module; where the config wants it, Muon (Jordan et al. 2024) for its transformers' matrices.

    Muon's updates have equal singular values, so what few examples teach moves as far as what all share.
    """
    matrices = [p for key, p in module.named_parameters() if p.ndim == 2 and "transformer" in key]
    matrices = matrices if config.muon else []
    taken = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in taken]
    made: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(
            rest, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    }
    if matrices:
        # its updates are scaled to AdamW's size
        made[f"{name}.muon"] = torch.optim.Muon(
            matrices, config.lr, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
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


def progress_bar() -> Progress:
    from rich.console import Console

    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=1)


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a step ends and is saved; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
