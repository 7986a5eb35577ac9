"""Embeddings of textual inversion made of several: their vectors added up, or one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from inkwash.adapters.embeddings import MAX_VECTORS, TOWERS, read_embedding, read_picture
from inkwash.files import ModelFileError
from inkwash.merge.sources import Info, adapter_source
from inkwash.merge.writing import save
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.kinds import kind_of

KEYS = ("clip_l", "clip_g")


def merge_embeddings(
    files: Sequence[Path],
    shares: Sequence[float],
    path: Path,
    method: Literal["sum", "concat"] = "sum",
) -> None:
    """Write one embedding of several, for SDXL of both its encoders, under the names that all programs read.

    sum: of the vectors, each times its file's share; a file with fewer vectors counts nothing where it has none. concat: the
    files' vectors after one another. Raises ModelFileError for files of different widths, for more than 75 vectors, and as
    `read_embedding`.
    """
    widths = [widths_of(file) for file in files]
    for file, own in zip(files, widths, strict=True):
        if own != widths[0]:
            said = [" and ".join(map(str, each)) for each in (own, widths[0])]
            raise ModelFileError(f"{file} has vectors {said[0]} wide, and {files[0]} {said[1]}")
    read = [read_embedding(file, widths[0]) for file in files]
    made = []
    for tower in range(len(widths[0])):
        vectors = [by * each[tower] for by, each in zip(shares, read, strict=True)]
        made.append(torch.cat(vectors) if method == "concat" else summed(vectors))
    if len(made[0]) > MAX_VECTORS:
        raise ModelFileError(
            f"{len(made[0])} vectors are more than the {MAX_VECTORS} that a prompt has room for"
        )
    names = KEYS if len(made) > 1 else ("emb_params",)
    tensors: dict[str, Tensor] = dict(zip(names, made, strict=True))
    infos = {name: Info(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    merged_from = {"modelspec.merged_from": ", ".join(file.stem for file in files)}
    sources = [adapter_source(file) for file in files if file.suffix.lower() not in (".png", ".webp")]
    save(path, infos, lambda name, room: tensors[name], merged_from, sources)


def summed(vectors: Sequence[Tensor]) -> Tensor:
    longest = max(map(len, vectors))
    padded = [torch.nn.functional.pad(each, (0, 0, 0, longest - len(each))) for each in vectors]
    return torch.stack(padded).sum(0)


def widths_of(path: Path) -> list[int]:
    """The width of a file's vectors, or the two of SDXL's."""
    is_picture = path.suffix.lower() in (".png", ".webp")
    tensors = read_picture(path) if is_picture else read_tensors(path).tensors
    if not is_picture and (kind := kind_of(tensors)) != "embedding":
        raise ModelFileError(f"{path} is of the kind {kind}, and not an embedding")
    found = {name.split(".")[-1]: value for name, value in tensors.items() if value.ndim in (1, 2)}
    towers = [next((found[name] for name in names if name in found), None) for names in TOWERS]
    if all(tower is not None for tower in towers):
        return [tower.shape[-1] for tower in towers if tower is not None]
    return sorted({value.shape[-1] for value in found.values() if value.is_floating_point()})
