"""A checkpoint's modules, which adapters change: views of its file, and where a single file has their tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkwash.adapters.low_rank import layer_of
from inkwash.adapters.names import TEXT_PARTS, Target
from inkwash.merge.blocks import component_of
from inkwash.merge.sources import Info
from inkwash.models.autoencoder import Pixels
from inkwash.weights.checkpoint import Component, Parts, TextEncoder, fill, network_of, undrawn
from inkwash.weights.models.folder import read_folder
from inkwash.weights.models.single import read_single, text_prefixes
from inkwash.weights.models.single_names import TEXT
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.wrappers import UNET
from inkwash.weights.scheduler import read_schedule


@dataclass(frozen=True, eq=False)
class Modules:
    """parts: networks to look layers up in, and not to be run. prefixes: of the text encoders in a single file."""

    parts: Parts
    prefixes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "Modules":
        """The modules of a file or folder. Raises ModelFileError for one that is not a checkpoint."""
        checkpoint = read_folder(path) if path.is_dir() else read_single(path, whole=False)
        texts = (
            TextEncoder(viewed(text), text.tokenizer, text.skip, text.final_norm) for text in checkpoint.text
        )
        parts = Parts(
            unet=viewed(checkpoint.unet),
            autoencoder=Pixels(),  # adapters change none
            text_encoders=tuple(texts),
            schedule=read_schedule(checkpoint.scheduler),
            prediction="eps",
            default_size=checkpoint.default_size,
            files=checkpoint.files,
        )
        return cls(parts, tuple(text_prefixes(checkpoint)))

    def layer(self, target: Target) -> Any:
        return layer_of(self.parts, target)

    def spelled(self, target: Target) -> str:
        """A name for the layer's weight by which its block and network can be told."""
        prefix = UNET if target.part == "unet" else self.prefixes[TEXT_PARTS.index(target.part)]
        return f"{prefix}{target.path}.weight"

    @property
    def names(self) -> Iterable[str]:
        return [f"{UNET}{name}" for name in self.parts.unet.state_dict()]

    def split(self, name: str, value: Tensor) -> dict[Target, Tensor]:
        """A single file's tensor as our networks have it, one or several by their names; as views where that is possible."""
        if name.startswith(UNET):
            return {Target("unet", name.removeprefix(UNET)): value}
        for part, prefix in zip(TEXT_PARTS, self.prefixes, strict=False):
            if name.startswith(prefix):
                own, table = {name.removeprefix(prefix): value}, TEXT.get(prefix)
                ours = own if table is None else translate(own, table)
                return {Target(part, key): tensor for key, tensor in ours.items()}
        return {}

    def join(self, tensors: Mapping[Target, Tensor]) -> Tensor:
        """The single file's tensor again."""
        part = next(iter(tensors)).part
        table = None if part == "unet" else TEXT.get(self.prefixes[TEXT_PARTS.index(part)])
        ours = {target.path: value for target, value in tensors.items()}
        return next(iter((ours if table is None else translate(ours, table, inverse=True)).values()))

    def places(self, infos: Mapping[str, Info]) -> dict[Target, str]:
        """Our tensors' names -> those in a single file of these."""
        return {
            target: name
            for name, info in infos.items()
            if component_of(name) not in (None, "vae")
            for target in self.split(name, torch.empty(info.shape, device="meta"))
        }


def viewed(component: Component[Any]) -> Any:
    """The network over the file's tensors in their dtypes; without memory where the file has none."""
    network = network_of(component.config)
    if component.tensors:
        return fill(partial(network, component.config), component.tensors, network.__name__)
    return undrawn(component.config)
