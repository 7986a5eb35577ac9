"""Adapters to files: under kohya's names, which every program reads, under diffusers' and peft's, or LyCORIS'."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkwash.adapters.change import Change
from inkwash.adapters.kinds import LoRA
from inkwash.adapters.low_rank import BUNDLED, Adapter
from inkwash.adapters.names import Target, kohya_names, peft_names, underscored
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import Parts
from inkwash.weights.names.tables import unet_paths

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

    names, and what is raised: see `adapter_tensors`; nothing is written then.
    """
    tensors, said = adapter_tensors(adapter, parts, names, dtype)
    write_tensors(Path(path), tensors, said | dict(metadata))


def adapter_tensors(
    adapter: Adapter, parts: Parts, names: str = "kohya", dtype: torch.dtype = torch.float16
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata. names: kohya; peft, diffusers' and peft's, which can say LoRAs and DoRAs alone; or
    lycoris, LyCORIS' own, of the U-Net alone.

    Raises ValueError for other names, for what they can't say, and for values that are not finite in `dtype`.
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
    return tensors, said


def as_kohya(adapter: Adapter, parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = named(adapter, kohya_names(parts))
    loras = [change for change in adapter.changes.values() if isinstance(change, LoRA)]
    if not loras:
        return tensors, {}
    return tensors, {
        "ss_network_module": "networks.lora",
        "ss_network_dim": one_of({change.rank for change in loras}),
        "ss_network_alpha": one_of({alpha_of(change) for change in loras}),
    }


def as_lycoris(adapter: Adapter, parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    if texts := {target.part for target in adapter.changes} - {"unet"}:
        raise ValueError(f"LyCORIS' names are of one network; take kohya's for a {min(texts)}, too")
    own = {
        Target("unet", path): f"lycoris_{underscored(name)}" for path, name in unet_paths(parts.unet).items()
    }
    return named(adapter, own), {}


def named(adapter: Adapter, modules: Mapping[Target, str]) -> dict[str, Tensor]:
    """Tensors by modules' names and their own."""
    tensors = {}
    for target, change in adapter.changes.items():
        for name, value in values(change).items():
            if name in SINGLE:
                value = torch.tensor(value, dtype=SINGLE[name])
            tensors[f"{modules[target]}.{name}{'.weight' * (name in WEIGHTS)}"] = value
    return tensors


def as_peft(adapter: Adapter, parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    known, tensors = peft_names(parts), {}
    settings: dict[str, object] = {}
    for part in sorted({target.part for target in adapter.changes}):
        # paths without what some releases of transformers put before them
        own = {
            known[target].removeprefix(f"{part}.").removeprefix("text_model."): (target, change)
            for target, change in adapter.changes.items()
            if target.part == part
        }
        ranks, alphas = {}, {}
        for path, (target, change) in own.items():
            if not isinstance(change, LoRA) or not is_pefts(change):
                raise ValueError(
                    f"peft's names are for LoRAs and DoRAs; take kohya's for the {kind_of(change)} of {path}"
                )
            ranks[path], alphas[path] = change.rank, alpha_of(change)
            tensors[f"{known[target]}.lora_A.weight"] = change.lora_down
            tensors[f"{known[target]}.lora_B.weight"] = change.lora_up
            if change.dora_scale is not None:
                shape = [1, -1, 1, 1] if change.lora_down.ndim == 4 else [-1]
                tensors[f"{known[target]}.lora_magnitude_vector"] = change.dora_scale.reshape(shape)
        (rank, own_ranks), (alpha, own_alphas) = usual(ranks), usual(alphas)
        settings |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": sorted(own)}
        doras = [change for _, change in own.values() if change.dora_scale is not None]
        if doras and len(doras) < len(own):
            raise ValueError(f"peft's names are for LoRAs or DoRAs, and the {part} has both; take kohya's")
        settings |= {f"{part}.use_dora": True} if doras else {}
        settings |= {f"{part}.rank_pattern": own_ranks} if own_ranks else {}
        settings |= {f"{part}.alpha_pattern": own_alphas} if own_alphas else {}
    return tensors, {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)}


def usual(numbers: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent of numbers, and those that are other ones."""
    most = Counter(numbers.values()).most_common(1)[0][0]
    return most, {path: number for path, number in numbers.items() if number != most}


WRITERS = {"kohya": as_kohya, "peft": as_peft, "lycoris": as_lycoris}


def values(change: Change) -> dict[str, Tensor | float | bool]:
    """A change's values, under its own names."""
    pairs = ((field.name, getattr(change, field.name)) for field in fields(change))
    return {name: value for name, value in pairs if value is not None}


def is_pefts(change: LoRA) -> bool:
    """Return True for a LoRA without a middle factor, and for a DoRA whose magnitudes are of rows, as peft has them."""
    by_rows = change.dora_scale is None or change.dora_scale.shape[0] == len(change.lora_up)
    return by_rows and not values(change).keys() - {"lora_down", "lora_up", "alpha", "dora_scale"}


def kind_of(change: Change) -> str:
    """The name of a change's kind, for messages."""
    more = (
        sorted(values(change).keys() - {"lora_down", "lora_up", "alpha"}) if isinstance(change, LoRA) else ()
    )
    return f"{type(change).__name__}{' with ' * bool(more)}{' and '.join(more)}"


def alpha_of(change: Change) -> float | None:
    return change.rank if change.alpha is None else change.alpha


def one_of(numbers: set[Any]) -> str:
    """The text of a number for metadata, "Dynamic" where it differs between layers, as kohya's trainer writes it."""
    return str(numbers.pop()) if len(numbers) == 1 else "Dynamic"
