"""Adapters to files: under kohya's names, which every program reads, or under diffusers' and peft's."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from inkwash.adapters.changes import Change, LoRA
from inkwash.adapters.low_rank import BUNDLED, Adapter
from inkwash.adapters.names import kohya_names, peft_names
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import Parts

WEIGHTS = ("lora_down", "lora_up", "lora_mid", "a1", "a2", "b1", "b2")  # whose names end in .weight
SINGLE = {"alpha": torch.float32, "on_input": torch.bool}


def write_adapter(
    path: Path | str,
    adapter: Adapter,
    parts: Parts,
    names: str = "kohya",
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write an adapter of a model; `read_adapter` reads it again, as diffusers does and, by kohya's names, the others.

    names: kohya or peft, which is for LoRAs of one rank and alpha alone. Raises ValueError for other names, for what
    they can't say, and for values that are not finite in `dtype`; nothing is written then.
    """
    if names not in WRITERS:
        raise ValueError(f"names {names!r} is not one of {', '.join(WRITERS)}")
    tensors, said = WRITERS[names](adapter, parts)
    bundled = {
        f"{BUNDLED}{name}.{key}": value
        for name, own in adapter.embeddings.items()
        for key, value in own.items()
    }
    tensors = {
        key: value.detach().to(dtype) if value.is_floating_point() and value.ndim else value
        for key, value in (tensors | bundled).items()
    }
    if bad := next((key for key, value in tensors.items() if not value.isfinite().all()), None):
        raise ValueError(f"{bad} has values that are not finite in {str(dtype).removeprefix('torch.')}")
    write_tensors(Path(path), tensors, said | dict(metadata))


def as_kohya(adapter: Adapter, parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    known, tensors = kohya_names(parts), {}
    for target, change in adapter.changes.items():
        for name, value in values(change).items():
            if name in SINGLE:
                value = torch.tensor(value, dtype=SINGLE[name])
            tensors[f"{known[target]}.{name}{'.weight' * (name in WEIGHTS)}"] = value
    loras = [change for change in adapter.changes.values() if isinstance(change, LoRA)]
    if not loras:
        return tensors, {}
    return tensors, {
        "ss_network_module": "networks.lora",
        "ss_network_dim": one_of({change.rank for change in loras}),
        "ss_network_alpha": one_of({alpha_of(change) for change in loras}),
    }


def as_peft(adapter: Adapter, parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    known, tensors = peft_names(parts), {}
    settings: dict[str, object] = {}
    for part in sorted({target.part for target in adapter.changes}):
        own = {target: change for target, change in adapter.changes.items() if target.part == part}
        about = {(change.rank, alpha_of(change)) for change in own.values() if is_plain(change)}
        if len(about) != 1 or not all(map(is_plain, own.values())):
            raise ValueError(
                "peft's names are for LoRAs of one rank and alpha; take kohya's for this adapter"
            )
        for target, change in own.items():
            assert isinstance(change, LoRA)
            tensors[f"{known[target]}.lora_A.weight"] = change.lora_down
            tensors[f"{known[target]}.lora_B.weight"] = change.lora_up
        rank, alpha = about.pop()
        # without what some releases of transformers put before them
        paths = sorted(known[target].removeprefix(f"{part}.").removeprefix("text_model.") for target in own)
        settings |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": paths}
    return tensors, {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)}


WRITERS = {"kohya": as_kohya, "peft": as_peft}


def values(change: Change) -> dict[str, Tensor | float | bool]:
    """What a change says, under its own names."""
    pairs = ((field.name, getattr(change, field.name)) for field in fields(change))
    return {name: value for name, value in pairs if value is not None}


def is_plain(change: Change) -> bool:
    return isinstance(change, LoRA) and not values(change).keys() - {"lora_down", "lora_up", "alpha"}


def alpha_of(change: Change) -> float | None:
    return change.rank if change.alpha is None else change.alpha


def one_of(numbers: set) -> str:
    """As kohya's trainer says a number that may differ between layers."""
    return str(numbers.pop()) if len(numbers) == 1 else "Dynamic"
