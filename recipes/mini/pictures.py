"""The shards as arrays in memory. N pictures, S their side."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inkwash.data.tars import read_samples
from inkwash.files import atomic


@dataclass(frozen=True)
class Pictures:
    """images: memory-mapped uint8 (N, S, S, 3). records: what the shards say of each."""

    images: np.ndarray
    records: list[dict]

    def pixels(self, indices: Tensor | np.ndarray) -> Tensor:
        """Pixels (B, 3, S, S) float32 in [-1, 1], channels last in memory."""
        batch = torch.from_numpy(self.images[np.asarray(indices)])
        return batch.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def where(self, **wanted: object) -> np.ndarray:
        """Indices of the pictures whose records have these values."""
        return np.array(
            [i for i, r in enumerate(self.records) if all(r.get(k) == v for k, v in wanted.items())],
            dtype=np.int64,
        )


def load_pictures(data: Path, split: str) -> Pictures:
    """Pictures of a split, "train" or "heldout". Decoded once, into an array beside the shards."""
    shards = sorted(data.glob(f"{split}-*.tar"))
    if not shards:
        raise FileNotFoundError(f"no {split}-*.tar in {data}: build them with `python -m recipes.mini.data`")
    array, table = data / f"{split}.npy", data / f"{split}.json"
    if not (array.exists() and table.exists()):
        images, records = [], []
        for sample in read_samples(shards):
            images.append(np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB")))
            records.append(json.loads(sample["json"]))
        with atomic(table) as partial:
            partial.write_text(json.dumps(records))
        with atomic(array) as partial, partial.open("wb") as file:
            np.save(file, np.stack(images))
    return Pictures(np.load(array, mmap_mode="r"), json.loads(table.read_text()))
