"""Settings of every run, from its config: the loop's, the precision, and the folder with the run's own config."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from inkwash.files import check_writable, write_text
from inkwash.training.config import TrainConfig
from inkwash.training.loop import LoopConfig
from inkwash.weights.checkpoint import DTYPES, fastest_dtype

OnStep = Callable[[int, int, Mapping[str, float]], None]  # steps done, of how many, their losses
# options that may change when a run is resumed
FREE = {"steps", "epochs", "output", "minutes", "save_every", "log_every", "sample_every", "sample_prompts", "threads",
        "sample_steps", "sample_cfg_scale", "figures_every", "tensorboard", "device", "layout", "save_dtype", "names",
        "cache", "cache_text", "block_swap", "gradient_checkpointing", "offline", "on_broken", "batch_size",
        "processes"}  # fmt: skip


def loop_config(c: TrainConfig, steps: int, precision: str) -> LoopConfig:
    """The loop's part of a config. Raises ValueError where two options do not go together."""
    if getattr(c, "parallel", "ddp") == "fsdp" and precision == "fp16":
        raise ValueError("parallel fsdp does not go with precision fp16, but with bf16 and fp32")
    if c.fused_backward and precision == "fp16":
        raise ValueError(
            "fused_backward true does not go with precision fp16, whose scale waits for all gradients"
        )
    return LoopConfig(
        num_steps=steps,
        lr=c.lr,
        warmup_steps=c.warmup,
        lr_schedule=c.lr_schedule,
        lr_cycles=c.lr_cycles,
        num_micro_batches=c.accumulation,
        optimizer=c.optimizer,
        betas=c.betas,
        weight_decay=c.weight_decay,
        muon=1.0 if c.optimizer == "muon" else 0.0,
        max_grad_norm=c.max_grad_norm,
        fused_backward=c.fused_backward,
        ema_decay=c.ema or None,
        precision=precision,
        save_every=c.save_every,
        log_every=c.log_every,
        seed=c.seed,
    )


def num_steps(c: TrainConfig, batches_per_epoch: int) -> int:
    """Optimizer steps of a run."""
    return -(-c.epochs * batches_per_epoch // c.accumulation) if c.epochs else c.steps


def chosen_precision(c: TrainConfig, device: torch.device, num_parameters: int) -> str:
    """Precision of matrix products in a network of so many parameters."""
    if c.precision != "auto":
        return c.precision
    fastest = fastest_dtype(device, num_parameters)
    return next(name for name, dtype in DTYPES.items() if dtype is fastest)


def check_folder(folder: Path) -> None:
    """Check that the output folder is writable, making it if need be; raise OSError otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "log.jsonl")


def check_same(folder: Path, method: str, config: TrainConfig, processes: int = 1) -> None:
    """Raise ValueError where the folder holds a run with another config, naming the option."""
    path, content = folder / "config.json", saved_config(method, config, processes)
    if path.exists() and any((folder / name).exists() for name in ("state.safetensors", "state")):
        old = json.loads(path.read_text())
        before, now = (one["batch_size"] * one.get("processes", 1) for one in (old, content))
        if before != now:
            raise ValueError(
                f"{folder} holds a run of {before} pictures a step, and {now} are given, of all processes"
            )
        for name, value in content.items():
            if name not in FREE and old.get(name, value) != value:
                raise ValueError(
                    f"{folder} holds a run with {name} {old[name]!r}, and {value!r} is given; "
                    "resume with the same, or give another output"
                )


def keep_config(folder: Path, method: str, config: TrainConfig, processes: int = 1) -> None:
    """Write the config into the run's folder, for `check_same`."""
    write_text(folder / "config.json", json.dumps(saved_config(method, config, processes), indent=1))


def saved_config(method: str, config: TrainConfig, processes: int) -> dict[str, Any]:
    return {"method": method} | config.model_dump(mode="json") | {"processes": processes}
