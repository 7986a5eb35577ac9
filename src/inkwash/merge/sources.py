"""Models as merges read them: tensors of mapped files, under the names that single files have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.merge.blocks import component_of
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.hashes import hash_of
from inkwash.weights.models.folder import read_folder
from inkwash.weights.models.single import kind_of_file, single_tensors
from inkwash.weights.names.wrappers import EMA, UNET, read_model_file

BARE = "cond_stage_model.transformer."  # SD1's text encoder, in the first year without text_model. behind it


class Info(NamedTuple):
    """A tensor, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A model's file or folder. tensors: all but the averages that training kept."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @cached_property
    def infos(self) -> dict[str, Info]:
        return {name: Info(value.dtype, tuple(value.shape)) for name, value in self.tensors.items()}

    @cached_property
    def files(self) -> tuple[Path, ...]:
        return (self.path,) if self.path.is_file() else read_folder(self.path).files

    @cached_property
    def sha256(self) -> str:
        return hash_of(self.files)


def open_source(name: str | Path, ema: bool = False) -> Source:
    """Open a checkpoint for a merge. ema: its averages in the place of the weights that they are of.

    Raises ModelFileError for a file that is not a checkpoint, naming what it is.
    """
    path = model_path(name)
    if path.is_dir():
        tensors, metadata = single_tensors(read_folder(path))
        if ema:
            raise ModelFileError(f"{path} is a folder; only single files hold averages")
        return Source(path, tensors, metadata)
    file = read_model_file(path)
    kind = kind_of_file(file)
    if kind != "checkpoint" and not any(key.startswith(UNET) for key in file.tensors):
        raise ModelFileError(f"{path} is of the kind {kind}, and not a checkpoint")
    metadata = {key: value for key, value in file.metadata.items() if isinstance(value, str)}
    source = Source(path, named(file.tensors), metadata)
    return with_averages(source, file.tensors) if ema else source


def adapter_source(path: Path) -> Source:
    """A file of an adapter. Raises ModelFileError for other files."""
    file = read_tensors(path)
    metadata = {key: value for key, value in file.metadata.items() if isinstance(value, str)}
    return Source(path, file.tensors, metadata)


def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without averages, and with one spelling of SD1's text encoder."""
    made = {}
    for name, value in tensors.items():
        rest = name.removeprefix(BARE)
        if rest != name and rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            name = f"{BARE}text_model.{rest}"
        if not name.startswith(EMA):
            made[name] = value
    return made


def with_averages(source: Source, tensors: Mapping[str, Tensor]) -> Source:
    made = dict(source.tensors)
    for name in made:
        if name.startswith(UNET):
            average = EMA + name.removeprefix("model.").replace(".", "")
            if average not in tensors:
                raise ModelFileError(f"{source.path} has no averages: {average} is missing")
            made[name] = tensors[average]
    return replace(source, tensors=made)


def family_name(infos: Mapping[str, Info]) -> str:
    """Name of the family of a model with these tensors, for messages."""
    width = next((i.shape[-1] for n, i in infos.items() if n.endswith("attn2.to_k.weight")), 0)
    known = {768: "SD1", 1024: "SD2", 1280: "SDXL's refiner", 2048: "SDXL"}
    return known.get(width, f"a model with a context {width} wide")


def components(infos: Mapping[str, Info]) -> set[str]:
    return {found for name in infos if (found := component_of(name))}
