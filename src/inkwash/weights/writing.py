"""Writing safetensors files."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from inkwash.weights.files import atomic
from inkwash.weights.reading import DTYPES


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor after the other, so that none has to be in memory but the one written."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # wide dtypes first, so that each tensor is aligned to its own
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in order:
        value = tensors[name]
        begin, end = end, end + value.numel() * value.dtype.itemsize
        header[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
