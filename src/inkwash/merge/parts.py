"""A network put in the place of a model's own one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.merge.blocks import component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source
from inkwash.weights.models.component import read_component
from inkwash.weights.models.single_names import AUTOENCODER


@dataclass(frozen=True, eq=False)
class WithVAE(Value):
    """A model with another autoencoder, baked in as merge tools call it. tensors: by their names in a single file."""

    inner: Value
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, inner: Value, path: Path) -> "WithVAE":
        """With the autoencoder of a file of its own. Raises ModelFileError where it is not of the model's shape."""
        part = read_component(path)
        tensors = {f"{AUTOENCODER}{name}": value for name, value in part.tensors.items()}
        own = {name: info.shape for name, info in inner.infos.items() if component_of(name) == "vae"}
        if own and own != {name: tuple(value.shape) for name, value in tensors.items()}:
            raise ModelFileError(f"{path} is not an autoencoder of the model's shape")
        return cls(inner, tensors)

    @cached_property
    def infos(self) -> Mapping[str, Info]:  # pyright: ignore[reportIncompatibleMethodOverride]
        added = {name: Info(value.dtype, tuple(value.shape)) for name, value in self.tensors.items()}
        return {name: info for name, info in self.inner.infos.items() if component_of(name) != "vae"} | added

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name].float() if name in self.tensors else self.inner.tensor(name)

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        own = name in self.tensors
        yield from super().blocks(name, dtype) if own else self.inner.blocks(name, dtype)

    def sources(self) -> Iterator[Source]:
        return self.inner.sources()
