"""Textual inversion: learned vectors as further tokens of a text encoder (Gal et al. 2023). D width."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.models.bert import BERT
from inkwash.models.clip import CLIPText
from inkwash.weights.checkpoint import TextEncoder, check_finite
from inkwash.weights.files import ModelFileError
from inkwash.weights.named import nearest
from inkwash.weights.reading import read_tensors

SUFFIXES = (".safetensors", ".pt", ".bin", ".png", ".webp")
CHUNK = "sd-ti-embedding"  # of a PNG: JSON in base64
MAX_VECTORS = 75  # a chunk's room
TOWERS = (("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1"))  # names in files of SDXL

# of a text encoder's number, its vectors (n, D)
Vectors = Sequence[Tensor]


def read_embedding(path: Path, widths: Sequence[int]) -> Vectors:
    """The vectors (n, D) of a file for each text encoder, by their widths D; n is at most 75 and the same for all.

    Read are A1111's and kohya's files, diffusers' `learned_embeds`, those of SDXL and A1111's PNG. Raises
    ModelFileError, in one line.
    """
    try:
        is_picture = path.suffix.lower() in (".png", ".webp")
        return vectors_of(read_picture(path) if is_picture else read_tensors(path).tensors, widths)
    except ModelFileError as error:
        raise ModelFileError(f"the embedding {path}: {error}") from error


def vectors_of(tensors: Mapping[str, Tensor], widths: Sequence[int]) -> Vectors:
    """The same of a file's tensors."""
    found = {
        name: value for name, value in tensors.items() if value.is_floating_point() and value.ndim in (1, 2)
    }
    check_finite(found, "it")
    made = []
    for i, width in enumerate(widths):
        own = TOWERS[i] if len(widths) > 1 else ()
        named = [value for name, value in found.items() if name.split(".")[-1] in own]
        fitting = [value for value in named or found.values() if value.shape[-1] == width]
        if not fitting:
            has = sorted({value.shape[-1] for value in found.values()})
            raise ModelFileError(
                f"its vectors are {' and '.join(map(str, has)) or 'not there, so none is'} wide; "
                f"the model's text encoders take {' and '.join(map(str, widths))}"
            )
        made.append(torch.cat([value.reshape(-1, width) for value in fitting]).float())
    numbers = {len(vectors) for vectors in made}
    if len(numbers) > 1 or not 1 <= max(numbers) <= MAX_VECTORS:
        raise ModelFileError(
            f"it has {' and '.join(map(str, sorted(numbers)))} vectors; 1 to {MAX_VECTORS} are taken"
        )
    return made


def read_picture(path: Path) -> dict[str, Tensor]:
    """The tensors in a PNG's text chunk."""
    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ModelFileError(f"it is no picture that can be read: {error}") from error
    if not isinstance(text, str):
        raise ModelFileError(f"the picture has no {CHUNK}")
    try:
        content = json.loads(base64.b64decode(text, validate=True))
        return {
            str(i): torch.tensor(values, dtype=torch.float32) for i, values in enumerate(tensors_in(content))
        }
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise ModelFileError(f"its {CHUNK} can't be read: {' '.join(str(error).split())[:200]}") from error


def tensors_in(content: Any) -> Iterator[list]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from [value] if key == "TORCHTENSOR" else tensors_in(value)


Sources = Mapping[str, Callable[[Sequence[int]], Vectors]]  # a name -> what reads its vectors


def sources(files: Mapping[str, Path]) -> Sources:
    """What reads files, by their names."""
    return {name: partial(read_embedding, path) for name, path in files.items()}


class Learned:
    """Embeddings as further tokens of one text encoder: ids from the vocabulary's size on. Read when they are met."""

    def __init__(self, known: Sources, encoders: Sequence[TextEncoder], tower: int = 0):
        self.known, self.tower = known, tower
        self.widths = [encoder.model.config.width for encoder in encoders]
        self.first = encoders[tower].model.config.vocab_size if encoders else 0
        self.vectors: dict[str, Tensor] = {}
        self.begins: dict[int, list[tuple[list[int], str]]] = {}
        tokenizer = encoders[tower].tokenizer if encoders else None
        for name in known:
            if tokenizer and (ids := tokenizer.encode(name)):
                self.begins.setdefault(ids[0], []).append((ids, name))
        for some in self.begins.values():
            some.sort(key=lambda entry: -len(entry[0]))

    def at(self, ids: Sequence[int], i: int) -> tuple[str | None, int]:
        """The embedding whose name begins at token i, and how many tokens are to be taken."""
        for name_ids, name in self.begins.get(ids[i], ()):
            if list(ids[i : i + len(name_ids)]) == name_ids:
                return name, len(name_ids)
        return None, 1

    def ids(self, name: str) -> list[int]:
        """Token ids of an embedding. Raises ValueError for a name that is none."""
        if name not in self.known:
            raise ValueError(f"there is no embedding {name!r}{nearest(name, self.known)}")
        if name not in self.vectors:
            self.vectors[name] = self.known[name](self.widths)[self.tower]
        begin = self.first
        for other, vectors in self.vectors.items():
            if other == name:
                break
            begin += len(vectors)
        return list(range(begin, begin + len(self.vectors[name])))


NONE = Learned({}, ())


class Extended(nn.Module):
    """A token table with further rows."""

    def __init__(self, known: nn.Embedding, vectors: Tensor):
        super().__init__()
        self.known, self.vectors = known, vectors

    def forward(self, tokens: Tensor) -> Tensor:
        row = tokens - self.known.num_embeddings
        known = self.known(tokens.clamp(max=self.known.num_embeddings - 1))
        return torch.where(row[..., None] >= 0, self.vectors[row.clamp(min=0)], known)


@contextmanager
def extended(model: CLIPText | BERT, learned: Learned) -> Iterator[None]:
    """Within it the text encoder knows what was learned."""
    if not learned.vectors:
        yield
        return
    if isinstance(model, BERT):
        owner, name = model.transformer, "token_emb"
    else:
        owner, name = model.text_model.embeddings, "token_embedding"
    known = getattr(owner, name)
    rows = torch.cat(list(learned.vectors.values())).to(known.weight.device, known.weight.dtype)
    setattr(owner, name, Extended(known, rows))
    try:
        yield
    finally:
        setattr(owner, name, known)
