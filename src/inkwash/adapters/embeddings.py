"""Textual inversion: learned vectors as further tokens of a text encoder (Gal et al. 2023). D width."""

import base64
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.models.bert import BERT
from inkwash.models.clip import CLIPText
from inkwash.models.t5 import T5
from inkwash.weights.bytes.paths import find_named, nearest
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.checkpoint import TextEncoder, check_finite

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pt", ".bin", ".png", ".webp")
CHUNK = "sd-ti-embedding"  # of a PNG: JSON in base64
MAX_HIDDEN = 32 << 20  # bytes of JSON in a picture's low bits
MAX_VECTORS = 75  # a chunk's room
TOWERS = (("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1"))  # names in files of SDXL

# of a text encoder's number, its vectors (n, D)
Vectors = Sequence[Tensor]


def read_embedding(path: Path, widths: Sequence[int]) -> Vectors:
    """An embedding's vectors (n, D) for each text encoder, by their widths D; n is at most 75, and equal for all.

    Read are A1111's and kohya's files, diffusers' `learned_embeds`, those of SDXL and A1111's pictures. Raises
    ModelFileError, in one line.
    """
    try:
        is_picture = path.suffix.lower() in (".png", ".webp")
        return vectors_of(read_picture(path) if is_picture else read_tensors(path).tensors, widths)
    except ModelFileError as error:
        raise ModelFileError(f"the embedding {path}: {error}") from error


def vectors_of(tensors: Mapping[str, Tensor], widths: Sequence[int]) -> Vectors:
    """The vectors (n, D) of a file's tensors for each text encoder, by their widths D."""
    found = {
        name: value for name, value in tensors.items() if value.is_floating_point() and value.ndim in (1, 2)
    }
    if behind := [name for name in found if name.endswith("_out")]:
        # OneTrainer's, which it adds to the encoder's output
        log.warning("%s is not used: vectors behind the text encoder are not supported", behind[0])
        found = {name: value for name, value in found.items() if name not in behind}
    check_finite(found, "it")
    made = []
    for i, width in enumerate(widths):
        own = TOWERS[i] if len(widths) > 1 else ()
        named = [value for name, value in found.items() if name.split(".")[-1] in own]
        fitting = [value for value in named or found.values() if value.shape[-1] == width]
        if not fitting:
            has = sorted({value.shape[-1] for value in found.values()})
            expected = " and ".join(map(str, widths))
            if not has:
                raise ModelFileError(f"it has no vectors; expected width {expected}")
            raise ModelFileError(
                f"its vectors have width {' and '.join(map(str, has))}; the model takes {expected}"
            )
        made.append(torch.cat([value.reshape(-1, width) for value in fitting]).float())
    numbers = {len(vectors) for vectors in made}
    if len(numbers) > 1 or not 1 <= max(numbers) <= MAX_VECTORS:
        raise ModelFileError(
            f"it has {' and '.join(map(str, sorted(numbers)))} vectors; 1 to {MAX_VECTORS} are taken"
        )
    return made


def read_picture(path: Path) -> dict[str, Tensor]:
    """The tensors in a picture's text chunk, or in the low bits of its pixels."""
    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
            content = text if isinstance(text, str) else np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ModelFileError(f"it is not a readable picture: {error}") from error
    try:
        read = json.loads(
            base64.b64decode(content, validate=True) if isinstance(content, str) else hidden(content)
        )
        return {
            str(i): torch.tensor(values, dtype=torch.float32) for i, values in enumerate(tensors_in(read))
        }
    except ModelFileError:
        raise
    except (ValueError, TypeError, RuntimeError, RecursionError, zlib.error) as error:
        raise ModelFileError(f"its {CHUNK} can't be read: {' '.join(str(error).split())[:200]}") from error


def hidden(pixels: np.ndarray) -> bytes:
    """Data that A1111 hides beside a picture (H, W, 3): JSON, compressed, in the lower four bits of two blocks of columns.

    The left block has the lower halves of the bytes and the right one the upper; next to the picture each ends in a
    column whose lower bits are 0. Raises ModelFileError where there are no such blocks.
    """
    inside = (pixels > 0).all(axis=-1)  # but for a black margin
    rows, columns = np.flatnonzero(inside.any(axis=-1)), np.flatnonzero(inside.T.any(axis=-1))
    if not len(rows):
        raise ModelFileError(f"the picture has no {CHUNK}, and hides nothing")
    bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    borders = np.flatnonzero(bits.sum(axis=(0, 2)) == 0)
    if len(borders) < 2:
        raise ModelFileError(f"the picture has no {CHUNK}, and hides nothing")
    low, high = bits[:, : borders[0]], bits[:, borders[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        raise ModelFileError("what the picture hides is cut")
    content = (unmasked(high) << 4 | unmasked(low)).tobytes()
    unpacked = zlib.decompressobj().decompress(content, MAX_HIDDEN + 1)
    if len(unpacked) > MAX_HIDDEN:
        raise ModelFileError(f"what the picture hides is longer than {MAX_HIDDEN:,} bytes")
    return unpacked


def unmasked(bits: np.ndarray) -> np.ndarray:
    """Four bits each, xor those of the linear congruential generator of Numerical Recipes, remainders by 255."""
    factors = np.cumprod(np.full(bits.size, 1664525, dtype=np.uint32), dtype=np.uint32)
    # the n-th state is 1013904223 (1 + a + ... + a^(n-1)) modulo 2^32
    sums = np.cumsum(np.concatenate([[1], factors[:-1]]).astype(np.uint32), dtype=np.uint32)
    states = sums * np.uint32(1013904223)
    return bits ^ (states % 255 & 15).astype(np.uint8).reshape(bits.shape)


def tensors_in(content: Any) -> Iterator[list[Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from [value] if key == "TORCHTENSOR" else tensors_in(value)


Sources = Mapping[str, Callable[[Sequence[int]], Vectors]]  # a name -> what reads its vectors


def sources(files: Mapping[str, Sequence[Path]]) -> Sources:
    """Readers of files, by the files' names; one raises ValueError when it is used for a name that several files have."""
    return {name: partial(read_named, name, files) for name in files}


def read_named(name: str, files: Mapping[str, Sequence[Path]], widths: Sequence[int]) -> Vectors:
    """The vectors of the one file of a name."""
    return read_embedding(find_named("embedding", name, files), widths)


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
def extended(model: CLIPText | BERT | T5, learned: Learned) -> Iterator[None]:
    """Add learned vectors to a text encoder's token table within the context."""
    if not learned.vectors:
        yield
        return
    if isinstance(model, BERT):
        owner, name = model.transformer, "token_emb"
    elif isinstance(model, T5):
        owner, name = model, "shared"
    else:
        owner, name = model.text_model.embeddings, "token_embedding"
    known = getattr(owner, name)
    rows = torch.cat(list(learned.vectors.values())).to(known.weight.device, known.weight.dtype)
    setattr(owner, name, Extended(known, rows))
    try:
        yield
    finally:
        setattr(owner, name, known)
