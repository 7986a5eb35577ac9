"""Labels of the world's pictures besides their captions. N pictures, S their side, B batch, D text width.

Pictures are counted without clip art, as the cached latents are.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inkwash.data.tars import read_samples
from inkwash.files import atomic
from inkwash.pipeline.model import Model
from recipes.mini.pictures import load_pictures
from recipes.mini.words import noun

Box = Sequence[int]


@dataclass(frozen=True)
class Labels:
    """The labels of a split, and the model whose first stage and text encoder they are seen through."""

    data: Path
    split: str
    model: Model

    @cached_property
    def pictures(self):
        return load_pictures(self.data, self.split)

    @cached_property
    def rows(self) -> np.ndarray:
        """The pictures' rows in the shards."""
        return self.pictures.captioned

    @cached_property
    def records(self) -> list[dict]:
        return [self.pictures.records[i] for i in self.rows]

    def pixels(self, chosen: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1], on the model's device."""
        return self.pictures.pixels(self.rows[chosen.numpy()]).to(self.model.device)

    @cached_property
    def alone(self) -> dict[str, int]:
        """Captions of pictures of one drawing, and the number of such a picture."""
        return {text: i for i, r in enumerate(self.records) if r["kind"] != "scene" for text in r["captions"]}

    def apart(self, i: int) -> list[dict]:
        """The objects of a picture whose boxes touch no other's."""
        objects = self.records[i]["objects"]
        return [a for a in objects if not any(touch(a["box"], b["box"]) for b in objects if b is not a)]

    @cached_property
    def scene_layers(self) -> np.ndarray:
        """uint8 (scenes, S, S): 0 is background, k where the object of layer k shows. Kept beside the shards."""
        path = self.data / f"{self.split}.layers.npy"
        if not path.exists():
            samples = read_samples(sorted(self.data.glob(f"{self.split}-*.tar")))
            maps = [Image.open(io.BytesIO(s["layers.png"])) for s in samples if "layers.png" in s]
            with atomic(path) as partial, partial.open("wb") as file:
                np.save(file, np.stack([np.asarray(image) for image in maps]))
        return np.load(path, mmap_mode="r")

    @cached_property
    def drawings(self) -> np.ndarray:
        """uint8 (drawings, S, S, 4)."""
        return np.load(self.data / "drawings.npy", mmap_mode="r")

    @cached_property
    def scene_numbers(self) -> dict[int, int]:
        scenes = [i for i, r in enumerate(self.records) if r["kind"] == "scene"]
        return {i: number for number, i in enumerate(scenes)}

    def layers(self, i: int) -> np.ndarray:
        """The layers (S, S) of a picture as above; a drawing that is alone is layer 1."""
        if i in self.scene_numbers:
            return self.scene_layers[self.scene_numbers[i]]
        return (self.alpha(i) >= 128).astype(np.uint8)

    def alpha(self, i: int) -> np.ndarray:
        """Opacity of a drawing that is alone, uint8 (S, S)."""
        return self.drawings[self.records[i]["objects"][0]["drawing"]][..., 3]

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """The pooled vector (D,) of each object's noun."""
        texts = sorted({noun(o["name"], o["colour"]) for r in self.records for o in r["objects"]})
        (text,) = self.model.text_encoders
        found: dict[str, Tensor] = {}
        for start in range(0, len(texts), 256):
            some = texts[start : start + 256]
            tokens = torch.tensor(text.tokenizer(some), device=self.model.device)
            ends = (tokens == text.tokenizer.end).int().argmax(1)
            with torch.no_grad():  # causal: what follows the longest text changes nothing
                pooled = text.model(tokens[:, : int(ends.max()) + 1])[1]
            found |= zip(some, pooled.float().cpu(), strict=True)
        return found


def caption_alone(one: dict) -> str:
    """An object's caption, as a picture that shows it alone has it."""
    return f"{noun(one['name'], one['colour'])}, {one['style']} style"


def touch(a: Box, b: Box) -> bool:
    """Return True if two boxes (x0, y0, x1, y1) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
