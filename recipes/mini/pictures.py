"""The shards as arrays in memory. N pictures, S their side."""

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inkwash.data.tars import read_samples
from inkwash.files import atomic


@dataclass(frozen=True)
class Pictures:
    """images: memory-mapped uint8 (N, S, S, 3), or a tensor of them on a device. records: what the shards say of each."""

    images: np.ndarray | Tensor
    records: list[dict]

    def on(self, device: torch.device) -> "Pictures":
        """Copy the pictures to a GPU, where batches are then made; on a CPU return them as they are."""
        if device.type == "cpu":
            return self
        return replace(self, images=torch.from_numpy(np.array(self.images)).to(device))

    def pixels(self, indices: Tensor | np.ndarray) -> Tensor:
        """Pixels (B, 3, S, S) float32 in [-1, 1], channels last in memory."""
        if isinstance(self.images, Tensor):
            batch = self.images[torch.as_tensor(indices, device=self.images.device)]
        else:
            batch = torch.from_numpy(self.images[np.asarray(indices)])
        return batch.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def where(self, **wanted: object) -> np.ndarray:
        """Indices of the pictures whose records have these values."""
        return np.array(
            [i for i, r in enumerate(self.records) if all(r.get(k) == v for k, v in wanted.items())],
            dtype=np.int64,
        )

    @property
    def captioned(self) -> np.ndarray:
        """Indices of the pictures that text asks for, all but clip art, in the order of the cached latents."""
        return np.array([i for i, record in enumerate(self.records) if record["kind"] != "clipart"], np.int64)


def common_drawings(data: Path) -> dict[str, str]:
    """Slug and name of each drawing that all styles have, by slug: the order of the judges' classes."""
    drawings = json.loads((data / "drawings.json").read_text())
    return dict(sorted({d["slug"]: d["name"] for d in drawings if d["common"]}.items()))


def load_pictures(data: Path, split: str) -> Pictures:
    """Pictures of a split, "train" or "heldout". Decoded once, into an array beside the shards."""
    shards = sorted(data.glob(f"{split}-*.tar"))
    if not shards:
        raise FileNotFoundError(f"no {split}-*.tar in {data}: build them with `python -m recipes.mini.data`")
    array, table = data / f"{split}.npy", data / f"{split}.json"
    if not (array.exists() and table.exists()):
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(decode, read_samples(shards)))
        images, records = zip(*decoded, strict=True)
        with atomic(table) as partial:
            partial.write_text(json.dumps(records))
        with atomic(array) as partial, partial.open("wb") as file:
            np.save(file, np.stack(images))
    return Pictures(np.load(array, mmap_mode="r"), json.loads(table.read_text()))


def decode(sample: Mapping[str, bytes]) -> tuple[np.ndarray, dict]:
    """The pixels (S, S, 3) and the record of a sample of a shard."""
    return np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB")), json.loads(sample["json"])
