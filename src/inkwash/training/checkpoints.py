"""Training state on disk: one safetensors file, no pickles, replaced in one rename; the one before it is kept."""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from inkwash.files import ModelFileError
from inkwash.training.distributed import World
from inkwash.training.ema import EMA
from inkwash.weights.bytes.tensor_file import write_tensors

log = logging.getLogger(__name__)
FILES = NEXT, NEWEST, PREVIOUS = "state-next.safetensors", "state.safetensors", "state-previous.safetensors"
NUMBERS = (int, float, bool)  # of an optimizer's groups, such as Prodigy's estimates


@dataclass(frozen=True)
class States:
    """All that a run goes on from."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    emas: Mapping[str, EMA]
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))


def save_newest(folder: Path, step: int, states: States) -> None:
    """Write the state after `step` steps; the newest one until now is kept as the previous one.

    A crash at any time leaves one of the two whole.
    """
    save_state(folder / NEXT, step, states)
    take_next(folder, FILES)


def load_newest(folder: Path, states: States, world: World = World()) -> int:
    """Fill everything in place from the newest state that is whole; returns its step, 0 where there is none.

    What a crash between two renames left is put in order, and a damaged state is replaced by the one before it. Raises
    ModelFileError where there are states and none can be used; all are left as they are then.
    """
    return load_first(folder, FILES, Path.exists, lambda path: load_state(path, states), world)


def take_next(folder: Path, names: Sequence[str]) -> None:
    """Make the state that was written last the newest one, and the newest one until now the previous one.

    names: of the three, which are files or folders.
    """
    following, newest, previous = (folder / name for name in names)
    if newest.exists():
        replace_state(newest, previous)
    os.replace(following, newest)


def replace_state(path: Path, other: Path) -> None:
    """Rename a state to the place of another one, which is lost."""
    shutil.rmtree(other, ignore_errors=True)  # a file is replaced, and a folder is not
    os.replace(path, other)


def load_first(
    folder: Path,
    names: Sequence[str],
    is_there: Callable[[Path], bool],
    load: Callable[[Path], int],
    world: World,
) -> int:
    """Load the first of three states that is whole, and put in order what a crash left; returns its step, 0 for none.

    names: as of `take_next`; the first one is there after a crash between two renames. A newest state that is damaged is
    replaced by the previous one, which the next save would otherwise drop for it.
    """
    following, newest, previous = paths = [folder / name for name in names]
    error = None
    for path in paths:
        if not is_there(path):
            if path == newest and is_there(previous):
                log.warning("there is no %s; trying the state before it", path)
            continue
        try:
            step = load(path)
        except ModelFileError as problem:
            log.warning("%s; trying the state before it", problem)
            error = error or problem
        else:
            if path != newest:
                world.wait()  # until all have read it
                if world.is_first and path == following:
                    take_next(folder, names)
                elif world.is_first:
                    replace_state(previous, newest)
            return step
    if error:
        raise error
    return 0


def save_state(path: Path, step: int, states: States) -> None:
    """Write a state; checksums of its tensors and of its header are in its metadata."""
    tensors, about = contents(states)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    numbers = {"step": str(step), "about": json.dumps(about, sort_keys=True)}
    sums = {"crc32": str(checksum(tensors)), "crc32_of_header": str(header_checksum(numbers, tensors))}
    write_tensors(path, tensors, numbers | sums)


def contents(states: States) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state's tensors by name, which share memory with it, and its numbers."""
    tensors: dict[str, Tensor] = {}
    for name, module in states.modules.items():
        tensors |= {f"modules/{name}/{key}": value for key, value in module.state_dict().items()}
    groups = {}
    for name, optimizer in states.optimizers.items():
        content = optimizer.state_dict()
        for index, slots in content["state"].items():
            tensors |= {f"optimizers/{name}/{index}/{slot}": torch.as_tensor(v) for slot, v in slots.items()}
        groups[name] = [
            {key: value for key, value in group.items() if type(value) in NUMBERS}
            for group in content["param_groups"]
        ]
    for name, ema in states.emas.items():
        tensors |= {f"emas/{name}/{key}": value for key, value in ema.state_dict().items()}
    tensors = {key: value.detach() for key, value in tensors.items()}
    trained = {name: shapes_checksum(optimizer) for name, optimizer in states.optimizers.items()}
    return tensors, {"groups": groups, "scaler": states.scaler.state_dict(), "trained": trained}


def shapes_checksum(optimizer: Optimizer) -> int:
    """CRC-32 of the shapes of all parameters that an optimizer steps, in their order."""
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    return zlib.crc32(repr(shapes).encode())


def fill_groups(states: States, about: dict[str, Any]) -> None:
    """Give the groups of all optimizers their numbers."""
    for name, optimizer in states.optimizers.items():
        for group, numbers in zip(optimizer.param_groups, about["groups"][name], strict=True):
            group.update(numbers)


def load_state(path: Path, states: States) -> int:
    """Fill modules, optimizers and averages in place; returns the step count.

    Raises ModelFileError where the file is damaged, or was written by a training of other networks; nothing is filled then
    where the damage is in the bytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        header = header_checksum(metadata, tensors)
        # older states have none of their header
        kept = int(metadata["crc32"]), int(metadata.get("crc32_of_header", header))
        if (checksum(tensors), header) != kept:
            raise ValueError("its checksum does not fit, so its bytes have changed")
        about = json.loads(metadata["about"])
        parts: dict[str, dict[str, dict[str, Tensor]]] = {"modules": {}, "optimizers": {}, "emas": {}}
        for key, value in tensors.items():
            kind, name, rest = key.split("/", 2)
            parts[kind].setdefault(name, {})[rest] = value
        for name, optimizer in states.optimizers.items():
            # moments of other parameters would be read beyond their ends; older states don't say whose theirs are
            own = shapes_checksum(optimizer)
            if about.get("trained", {}).get(name, own) != own:
                raise ValueError(f"it trained other parameters of {name}")
        for name, module in states.modules.items():
            module.load_state_dict(parts["modules"].get(name, {}))
        for name, ema in states.emas.items():
            ema.load_state_dict(parts["emas"][name])
        for name, optimizer in states.optimizers.items():
            load_optimizer(optimizer, parts["optimizers"].get(name, {}), about["groups"][name])
        if about["scaler"]:
            states.scaler.load_state_dict(about["scaler"])
        return int(metadata["step"])
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{path} is not a state of this training: {reason}") from error


def load_optimizer(optimizer: Optimizer, slots: Mapping[str, Tensor], numbers: list[dict[str, Any]]) -> None:
    """Fill an optimizer from its tensors by "index/slot" and the numbers of its groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in slots.items():
        index, slot = key.split("/")
        like = parameters[int(index)]
        if value.shape == like.shape:
            # fused steps pair values by their place in memory, which for channels_last is not their order
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[slot] = value
    groups = [group | own for group, own in zip(optimizer.state_dict()["param_groups"], numbers, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def header_checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the step, the numbers, and the tensors' dtypes and shapes."""
    kinds = [(key, str(value.dtype), tuple(value.shape)) for key, value in sorted(tensors.items())]
    return zlib.crc32(repr((metadata["step"], metadata["about"], kinds)).encode())


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors' bytes, by the order of their names."""
    total = 0
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        total = zlib.crc32(key.encode(), total)
        total = (
            zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total) if value.numel() else total
        )
    return total
