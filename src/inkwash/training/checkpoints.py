"""Training state on disk: one safetensors file, no pickles, replaced in one rename."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from inkwash.files import ModelFileError
from inkwash.training.ema import EMA
from inkwash.weights.bytes.tensor_file import write_tensors


def save_state(
    path: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    emas: Mapping[str, EMA],
    notes: Mapping[str, Any] = {},
) -> None:
    """Write all that a run needs to go on after `step` steps; an older file is replaced, never damaged."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"modules/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizers/{name}/{index}/{slot}": torch.as_tensor(v) for slot, v in slots.items()}
    for name, ema in emas.items():
        tensors |= {f"emas/{name}/{key}": value for key, value in ema.state_dict().items()}
    write_tensors(path, tensors, {"step": str(step), "notes": json.dumps(dict(notes))})


def load_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    emas: Mapping[str, EMA],
) -> tuple[int, dict[str, Any]]:
    """Fill modules, optimizers and averages in place; returns the step count and the notes.

    Raises ModelFileError where the file is damaged, or was written by a training of other networks.
    """
    parts: dict[str, dict[str, dict[str, Tensor]]] = {"modules": {}, "optimizers": {}, "emas": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for key in file.keys():  # noqa: SIM118  not a mapping
                kind, name, rest = key.split("/", 2)
                parts[kind].setdefault(name, {})[rest] = file.get_tensor(key)
        for name, module in modules.items():
            module.load_state_dict(parts["modules"].get(name, {}))
        for name, ema in emas.items():
            ema.load_state_dict(parts["emas"][name])
        for name, optimizer in optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in parts["optimizers"].get(name, {}).items():
                index, slot = key.split("/")
                like = parameters[int(index)]
                # fused steps pair values by their place in memory, which for channels_last is not their order
                value = (
                    torch.empty_like(like, dtype=value.dtype).copy_(value)
                    if value.shape == like.shape
                    else value
                )
                state.setdefault(int(index), {})[slot] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(metadata["step"]), json.loads(metadata["notes"])
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path} is no state of this training: {reason}") from error
