"""Merges as expressions: values that stand for whole models, and that compute one tensor at a time when asked for it.

a, b, c = Model.open("a.safetensors"), Model.open("b.safetensors"), Model.open("c.safetensors")
write(a + 0.5 * (b - c), Path("d.safetensors"))
write(merged("weighted_sum", a, b, alpha="GRAD_V"), Path("e.safetensors"))
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.merge.blocks import Parameter, Placed, Share, Weights, component_of
from inkwash.merge.methods import METHODS
from inkwash.merge.sources import Info, Source, components, family_name, open_source
from inkwash.weights.bytes.tensor_file import release
from inkwash.weights.names.wrappers import UNET

FIRST = f"{UNET}input_blocks.0.0.weight"  # whose input channels an inpainting model has more of
BLOCK = (
    1 << 18
)  # values that are computed at once where values don't depend on one another: they stay in the cache
WEIGHTS = TypeAdapter(Parameter)
SHARES = TypeAdapter(Share)


class Value(ABC):
    """Stands for a model, or for the difference of two."""

    @property
    @abstractmethod
    def infos(self) -> Mapping[str, Info]:
        """Dtypes and shapes of its tensors, by their names in a single file."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One of them, computed anew: floating-point ones of networks in float32."""

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """A tensor flattened, in pieces of BLOCK values that are computed as they are asked for.

        dtype: what they are rounded to afterwards. A piece is of that or of a dtype that loses nothing more by it.
        """
        yield from self.tensor(name).flatten().split(BLOCK)

    @abstractmethod
    def sources(self) -> Iterator[Source]:
        """The files that it is made of, the leading one first."""

    def __add__(self, other: "Value") -> "Value":
        return merged("add", self, other)

    def __sub__(self, other: "Value") -> "Value":
        return merged("subtract", self, other)

    def __mul__(self, by: float) -> "Value":
        return merged("self", self, alpha=by)

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class Model(Value):
    """A model as its file has it."""

    source: Source

    @classmethod
    def open(cls, name: str | Path, ema: bool = False) -> "Model":
        return cls(open_source(name, ema))

    @property
    def infos(self) -> Mapping[str, Info]:
        return self.source.infos

    def tensor(self, name: str) -> Tensor:
        stored = self.source.tensors[name]
        if not stored.is_floating_point() or not component_of(name):
            return stored
        made = stored.to(torch.float32, copy=True)
        release(stored)
        return made

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        stored = self.source.tensors[name]
        yield from stored.flatten().split(BLOCK)
        release(stored)

    def sources(self) -> Iterator[Source]:
        yield self.source


@dataclass(frozen=True, eq=False)
class Merge(Value):
    """Values merged by one of METHODS. Raises ModelFileError where they do not fit together, or the parameters do not fit.

    parameters: by name. shares: a weight for each model, or for each but the base. seed: of what the method draws.
    """

    method: str
    inputs: tuple[Value, ...]
    parameters: Mapping[str, Weights] = field(default_factory=dict)
    shares: tuple[Weights, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ModelFileError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        how, num = METHODS[self.method], len(self.inputs)
        least, most = how.inputs
        if num < least or (most is not None and num > most):
            wanted = str(least) if least == most else f"{least} or more"
            raise ModelFileError(f"{self.method} takes {wanted} models, not {num}")
        if unknown := self.parameters.keys() - how.parameters.keys():
            takes = ", ".join(how.parameters) or "none"
            raise ModelFileError(
                f"{self.method} has no parameter {min(unknown)}; its parameters are: {takes}"
            )
        wanted = (num - how.based) * how.shares
        if self.shares and len(self.shares) != wanted:
            raise ModelFileError(f"{self.method} takes {wanted} shares here, not {len(self.shares)}")
        for other in self.inputs[1:]:
            check_fit(self.inputs[0], other)
        _ = self.placed, self.placed_shares, self.values

    @cached_property
    def placed(self) -> dict[str, Placed]:
        defaults = METHODS[self.method].parameters
        chosen = {name: Weights(base=value) for name, value in defaults.items()} | dict(self.parameters)
        return {name: weights.of(self.infos) for name, weights in chosen.items()}

    @cached_property
    def placed_shares(self) -> tuple[Placed, ...]:
        how = METHODS[self.method]
        shares = self.shares or (Weights(base=1.0),) * (len(self.inputs) - how.based) * how.shares
        return tuple(share.of(self.infos) for share in shares)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The operands: the inputs, the second one aligned where the method does so."""
        if not METHODS[self.method].aligns:
            return self.inputs
        from inkwash.merge.rebasin import Aligned  # which is a value itself

        first, second = self.inputs
        return first, Aligned(first, second)

    @property
    def infos(self) -> Mapping[str, Info]:
        return self.inputs[0].infos

    def sources(self) -> Iterator[Source]:
        for value in self.inputs:
            yield from value.sources()

    def keeps(self, name: str) -> bool:
        """Return True if a tensor stays the first model's: of no network, of one that another lacks, or by method."""
        how, component = METHODS[self.method], component_of(name)
        number = self.infos[name].dtype.is_floating_point
        skipped = how.skip_vae and component == "vae"
        return not component or not number or skipped or any(name not in each.infos for each in self.inputs)

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        how = METHODS[self.method]
        if self.keeps(name):
            yield from self.inputs[0].blocks(name, dtype)
        elif not how.by_value or len({value.infos[name].shape for value in self.inputs}) > 1:
            yield from super().blocks(name, dtype)
        else:
            arguments = self.arguments(name)
            pieces = (value.blocks(name, torch.float32) for value in self.values)
            for each in zip(*pieces, strict=True):
                direct = how.rounds_once and {piece.dtype for piece in each} == {dtype}
                yield how.run(*(each if direct else (piece.float() for piece in each)), **arguments)

    def tensor(self, name: str) -> Tensor:
        how, first = METHODS[self.method], self.inputs[0].tensor(name)
        if self.keeps(name):
            return first
        others = [value.tensor(name) for value in self.values[1:]]
        channels = min(value.shape[1] for value in (first, *others)) if name == FIRST else None
        part, others = (
            first[:, :channels] if channels else first,
            [o[:, :channels] if channels else o for o in others],
        )
        made = how.run(part, *others, **self.arguments(name))
        return made if made.shape == first.shape else torch.cat([made, first[:, channels:]], 1)

    def arguments(self, name: str) -> dict[str, Any]:
        how = METHODS[self.method]
        made: dict[str, Any] = {key: placed.at(name) for key, placed in self.placed.items()}
        if how.shares:
            made["shares"] = tuple(placed.at(name) for placed in self.placed_shares)
        if how.random:
            digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
            made["random"] = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        if how.survey:
            made["found"] = self.found
        return made

    @cached_property
    def found(self) -> object:
        """The method's survey of all tensors, such as the range of their similarities."""
        how = METHODS[self.method]
        assert how.sample and how.survey
        sampled = [torch.empty(0)]
        for name in self.infos:
            if component_of(name) not in (None, "vae") and all(name in value.infos for value in self.inputs):
                tensors = [value.tensor(name) for value in self.inputs]
                if tensors[0].is_floating_point() and len({t.shape for t in tensors}) == 1:
                    sampled.append(how.sample(*tensors))
        return how.survey(torch.cat(sampled))


def check_fit(a: Value, b: Value) -> None:
    """Check that two values can be merged; raise ModelFileError for U-Nets or autoencoders of other names or shapes.

    A network that one of them lacks stays the first one's, as does a text encoder's layer that folders leave out.
    """
    ours, theirs = a.infos, b.infos
    first, second = (next(value.sources()).path for value in (a, b))
    both = components(ours) & components(theirs)
    if "unet" not in both:
        raise ModelFileError(f"{first} and {second} have no U-Net in common")
    kinds = family_name(ours), family_name(theirs)
    if kinds[0] != kinds[1]:
        raise ModelFileError(
            f"{first} is {kinds[0]} and {second} {kinds[1]}; models of one family can be merged"
        )
    for name, info in ours.items():
        component = component_of(name)
        if component not in both:
            continue
        if name not in theirs:
            if component in ("unet", "vae"):
                raise ModelFileError(f"{second} has no {name}, which {first} has")
        elif info.shape != theirs[name].shape:
            wide, narrow = info.shape[1:2], theirs[name].shape[1:2]
            if name == FIRST and wide > narrow and info.shape[2:] == theirs[name].shape[2:]:
                continue
            hint = "; give the model with more input channels first" if name == FIRST else ""
            shapes = f"{info.shape} in {first} and {theirs[name].shape} in {second}"
            raise ModelFileError(f"{name} has the shape {shapes}{hint}")
    for name in theirs:
        if component_of(name) in both & {"unet", "vae"} and name not in ours:
            raise ModelFileError(f"{first} has no {name}, which {second} has")


def merged(
    method: str, *inputs: Value, shares: tuple[Any, ...] = (), seed: int = 0, **parameters: Any
) -> Merge:
    """A merge with parameters as a recipe spells them: numbers, presets' names, lists, or tables of `Weights`' fields."""
    checked = {name: weights(value) for name, value in parameters.items()}
    return Merge(method, inputs, checked, tuple(weights(share, SHARES) for share in shares), seed)


def weights(value: Any, kind: TypeAdapter[Any] = WEIGHTS) -> Weights:
    """Weights as a recipe spells them. Raises ModelFileError, in one line, for anything else."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelFileError(f"{first['msg'].removeprefix('Value error, ')} (given: {value!r})") from error
