"""Adapters baked into a model: it draws what it does with them attached, and needs none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inkwash.adapters.low_rank import naming
from inkwash.adapters.names import Target
from inkwash.files import ModelFileError
from inkwash.merge.adapters import AdapterValue
from inkwash.merge.blocks import Placed, Weights, component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source


@dataclass(frozen=True, eq=False)
class Baked(Value):
    """A model with adapters in its weights. strengths: one for each, by block and network where it says so.

    As attached ones, adapters that depend on the weights (DoRA, OFT ...) see those of the model without the others.
    Raises ModelFileError for other strengths, and for an adapter of a network that the model lacks.
    """

    inner: Value
    adapters: tuple[AdapterValue, ...]
    strengths: tuple[Weights, ...] = ()

    def __post_init__(self) -> None:
        if self.strengths and len(self.strengths) != len(self.adapters):
            raise ModelFileError(
                f"{len(self.adapters)} adapters take as many shares, not {len(self.strengths)}"
            )
        for adapter in self.adapters:
            places = adapter.modules.places(self.infos)
            for target in adapter.targets:
                if Target(target.part, f"{target.path}.weight") not in places:
                    path = next(self.sources()).path
                    raise ModelFileError(
                        f"{path} has no {target.part} {target.path}, which an adapter changes"
                    )
        _ = self.placed

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        strengths = self.strengths or (Weights(base=1.0),) * len(self.adapters)
        return tuple(strength.of(self.infos) for strength in strengths)

    @property
    def infos(self) -> Mapping[str, Info]:
        return self.inner.infos

    def tensor(self, name: str) -> Tensor:
        made = self.inner.tensor(name)
        if component_of(name) in (None, "vae") or not made.is_floating_point():
            return made
        modules = self.adapters[0].modules
        own = modules.split(name, made)
        changed = {target: self.changed(target, value) for target, value in own.items()}
        return made if all(changed[key] is own[key] for key in own) else modules.join(changed)

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        changed = name in self.touched
        yield from super().blocks(name, dtype) if changed else self.inner.blocks(name, dtype)

    @cached_property
    def touched(self) -> frozenset[str]:
        """A single file's names of what adapters may change."""
        targets = {target for adapter in self.adapters for target in adapter.targets}
        places = self.adapters[0].modules.places(self.infos)
        return frozenset(
            name
            for parameter, name in places.items()
            if Target(parameter.part, parameter.path.rpartition(".")[0]) in targets
        )

    def changed(self, parameter: Target, value: Tensor) -> Tensor:
        """A parameter, by its name in our networks, with what the adapters add to it."""
        path, _, kind = parameter.path.rpartition(".")
        target, made = Target(parameter.part, path), value
        for adapter, placed in zip(self.adapters, self.placed, strict=True):
            by = placed.at(adapter.modules.spelled(target)) if target in adapter.targets else 0
            if not by or (change := adapter.change(target)) is None:
                continue
            if kind == "weight":
                with naming(target):
                    made = made + change.delta(value, by)
            elif change.diff_b is not None:
                made = made + by * change.diff_b
        return made

    def sources(self) -> Iterator[Source]:
        yield from self.inner.sources()
        for adapter in self.adapters:
            yield from adapter.sources()
