"""Adapters as expressions, as `expression` has models: files, sums of adapters, and the difference of two models.

out, in: a layer's channels; r: a rank; ... a convolution's kernel.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from inkwash.adapters.change import Change
from inkwash.adapters.kinds import Full, LoRA
from inkwash.adapters.low_rank import Adapter, adapter_of, naming
from inkwash.adapters.names import Target, networks
from inkwash.adapters.peft import Settings
from inkwash.files import ModelFileError
from inkwash.merge import tasks
from inkwash.merge.blocks import Placed, Weights
from inkwash.merge.expression import Value, check_fit
from inkwash.merge.modules import Modules
from inkwash.merge.ranks import Size, truncated, truncated_product
from inkwash.merge.sources import Source
from inkwash.weights.bytes.tensor_file import TensorFile

Bundled = Mapping[str, Mapping[str, Tensor]]


class AdapterValue(ABC):
    """Stands for an adapter of a model's modules."""

    modules: Modules

    @property
    @abstractmethod
    def targets(self) -> Collection[Target]:
        """The modules that it may change."""

    @abstractmethod
    def change(self, target: Target) -> Change | None:
        """Its change of a target, computed anew, in float32; None for nothing."""

    @abstractmethod
    def sources(self) -> Iterator[Source]:
        """The files that it is made of, the leading one first."""

    @property
    def embeddings(self) -> Bundled:
        """The embeddings that are bundled with it."""
        return {}


@dataclass(frozen=True, eq=False)
class AdapterFile(AdapterValue):
    """An adapter as its file has it."""

    source: Source
    modules: Modules  # pyright: ignore[reportIncompatibleVariableOverride]
    adapter: Adapter

    @classmethod
    def open(cls, source: Source, modules: Modules) -> "AdapterFile":
        """Read an adapter for these modules. Raises ModelFileError for one that does not fit them."""
        path, metadata = source.path, dict(source.metadata)
        file = TensorFile(path, "safetensors", dict(source.tensors), metadata)
        try:
            adapter = adapter_of(file, modules.parts, Settings.beside(path, metadata))
        except ModelFileError as error:
            raise ModelFileError(f"{path} does not fit the model: {error}") from error
        return cls(source, modules, adapter)

    @property
    def targets(self) -> Collection[Target]:
        return self.adapter.changes.keys()

    def change(self, target: Target) -> Change:
        return self.adapter.changes[target].to(torch.float32)

    def sources(self) -> Iterator[Source]:
        yield self.source

    @property
    def embeddings(self) -> Bundled:
        return self.adapter.embeddings


@dataclass(frozen=True, eq=False)
class Combined(AdapterValue):
    """Adapters made one by one of COMBINED. Raises ModelFileError for another method, and for shares that do not fit.

    shares: a weight for each. size: of what is cut to a rank. density: of methods that drop values. seed: of their choice.
    """

    method: str
    inputs: tuple[AdapterValue, ...]
    shares: tuple[Weights, ...] = ()
    size: Size = field(default_factory=Size)
    density: Weights = field(default_factory=Weights)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in COMBINED:
            raise ModelFileError(f"method {self.method!r} of adapters is not one of {', '.join(COMBINED)}")
        if self.shares and len(self.shares) != len(self.inputs):
            raise ModelFileError(f"{len(self.inputs)} adapters take as many shares, not {len(self.shares)}")
        if self.size.is_limited and not self.method.endswith("svd"):
            raise ModelFileError(
                f"{self.method} cuts no ranks; take svd for a rank, energy, ratio or quantile"
            )
        _ = self.placed, self.dense

    @property
    def modules(self) -> Modules:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inputs[0].modules

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        shares = self.shares or (Weights(base=1.0),) * len(self.inputs)
        return tuple(share.of(self.modules.names) for share in shares)

    @cached_property
    def dense(self) -> Placed:
        return self.density.of(self.modules.names)

    @cached_property
    def targets(self) -> Collection[Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dict.fromkeys(target for value in self.inputs for target in value.targets)

    def change(self, target: Target) -> Change | None:
        name = self.modules.spelled(target)
        pairs = [
            (change, by)
            for value, placed in zip(self.inputs, self.placed, strict=True)
            if target in value.targets and (by := placed.at(name)) and (change := value.change(target))
        ]
        if not pairs:
            return None
        changes, shares = zip(*pairs, strict=True)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        with naming(target):
            weight = self.modules.layer(target).weight.detach().float()
            combine = partial(SUMS.get(self.sum, SUMS["linear"]), density=self.dense.at(name), random=random)
            made = self.made(changes, shares, weight, combine)
        offsets = [by * each.diff_b for each, by in pairs if each.diff_b is not None]
        return replace(made, diff_b=torch.stack(offsets).sum(0) if offsets else None)

    @property
    def sum(self) -> str:
        """The name in SUMS of how factors or whole changes are added up."""
        return "linear" if self.method == "svd" else self.method.removesuffix("_svd")

    def made(
        self, changes: Sequence[Change], shares: Sequence[float], weight: Tensor, combine: "Sum"
    ) -> Change:
        """All of a change but its bias."""
        if len(changes) == 1 and shares[0] == 1 and self.method == "cat":
            return changes[0]
        if weight.ndim < 2 or (self.method == "cat" and all(isinstance(each, Full) for each in changes)):
            return Full(diff=combine([each.delta(weight) for each in changes], shares))
        found = [factors(each, weight) for each in changes]
        scaled = [by * each.scale for each, by in zip(changes, shares, strict=True)]
        low_rank = [each for each in found if each is not None]
        if self.method.endswith("svd"):
            if self.method == "svd" and len(low_rank) == len(found):
                return truncated_product(*side_by_side(low_rank, scaled), self.size)
            return truncated(combine([each.delta(weight) for each in changes], shares), self.size)
        if len(low_rank) < len(found):
            kind = next(
                type(each).__name__ for each, pair in zip(changes, found, strict=True) if pair is None
            )
            raise ValueError(f"{self.method} takes LoRAs, and one is a {kind}; take svd")
        if self.method == "cat":
            return lora(*side_by_side(low_rank, scaled))
        if len(ranks := {len(down) for _, down in low_rank}) > 1:
            said = " and ".join(map(str, sorted(ranks)))
            raise ValueError(f"{self.method} takes LoRAs of one rank, not {said}; take svd")
        # as peft: of the weight each factor has the root, and its sign is down's
        roots = [abs(by) ** 0.5 for by in scaled]
        signed = [root if by > 0 else -root for root, by in zip(roots, scaled, strict=True)]
        up, down = zip(*low_rank, strict=True)
        return lora(combine(up, roots), combine(down, signed))

    def sources(self) -> Iterator[Source]:
        for value in self.inputs:
            yield from value.sources()

    @property
    def embeddings(self) -> Bundled:
        """All of them; of two with one name, the first."""
        made: dict[str, Mapping[str, Tensor]] = {}
        for value in self.inputs:
            made = {**value.embeddings, **made}
        return made


Factors = tuple[Tensor, Tensor]  # up (out, r) and down (r, in, ...)
Sum = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def factors(change: Change, weight: Tensor) -> Factors | None:
    """A LoRA's factors, without its scale; None for a change that is not a product of two."""
    if not isinstance(change, LoRA) or change.dora_scale is not None:
        return None
    up, down = change.lora_up.flatten(1), change.lora_down
    if change.lora_mid is not None:
        down = torch.einsum("rs..., si -> ri...", change.lora_mid, down.flatten(1))
    return up, down.reshape(change.rank, *weight.shape[1:])


def side_by_side(pairs: Sequence[Factors], shares: Sequence[float]) -> Factors:
    """Factors of the weighted sum, whose rank is the sum of theirs."""
    roots = [abs(by) ** 0.5 for by in shares]
    ups = [(root if by > 0 else -root) * up for (up, _), root, by in zip(pairs, roots, shares, strict=True)]
    downs = [root * down for (_, down), root in zip(pairs, roots, strict=True)]
    return torch.cat(ups, 1), torch.cat(downs)


def lora(up: Tensor, down: Tensor) -> LoRA:
    """A LoRA of scale 1 with these factors."""
    ones = [1] * (down.ndim - 2)
    return LoRA(alpha=float(len(down)), lora_down=down, lora_up=up.reshape(*up.shape, *ones))


def linear(x: Sequence[Tensor], by: Sequence[float], density: float, random: torch.Generator) -> Tensor:
    return tasks.weighted(x, by)


def magnitude_prune(x: Sequence[Tensor], by: Sequence[float], density: float, random: object) -> Tensor:
    return tasks.weighted([tasks.largest(each, density) for each in x], by)


def ties(x: Sequence[Tensor], by: Sequence[float], density: float, random: object) -> Tensor:
    return tasks.agreeing([tasks.largest(each, density) for each in x], by)


def dare_linear(x: Sequence[Tensor], by: Sequence[float], density: float, random: torch.Generator) -> Tensor:
    return tasks.weighted([tasks.dropped(each, density, random) for each in x], by)


def dare_ties(x: Sequence[Tensor], by: Sequence[float], density: float, random: torch.Generator) -> Tensor:
    return tasks.agreeing([tasks.dropped(each, density, random) for each in x], by)


# peft's ways to add adapters: of the factors by themselves or, with _svd, of the whole changes
SUMS: Mapping[str, Callable[..., Tensor]] = {
    "linear": linear,
    "magnitude_prune": magnitude_prune,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
COMBINED = ("cat", "svd", *SUMS, *(f"{name}_svd" for name in SUMS if name != "linear"))


@dataclass(frozen=True, eq=False)
class Difference(AdapterValue):
    """The difference between a base and a model that was tuned from it, cut to a size (as kohya's and LyCORIS' extraction).

    Of it matrices of transformers and text encoders; with size.conv_rank also the U-Net's other matrices and convolutions
    (LoCon); whole: those, norms and biases too, which stay whole. Embeddings of tokens and positions are left out.
    """

    tuned: Value
    base: Value
    modules: Modules  # pyright: ignore[reportIncompatibleVariableOverride]
    size: Size = field(default_factory=Size)
    whole: bool = False

    def __post_init__(self) -> None:
        check_fit(self.tuned, self.base)
        check_fit(self.base, self.tuned)

    @cached_property
    def places(self) -> dict[Target, str]:
        return self.modules.places({k: v for k, v in self.base.infos.items() if k in self.tuned.infos})

    @cached_property
    def targets(self) -> Collection[Target]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = (
            Target(part, path)
            for part, network in networks(self.modules.parts).items()
            for path, module in network.named_modules()
            if self.takes(path, module)
        )
        return [target for target in found if Target(target.part, f"{target.path}.weight") in self.places]

    def takes(self, path: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            normal = "weight" in module._parameters and not isinstance(module, nn.Embedding)
            return self.whole and normal
        inside = (
            "transformer_blocks" in path
            or path.endswith(("proj_in", "proj_out"))
            or "layers" in path.split(".")
        )
        return inside or self.whole or self.size.conv_rank is not None

    def change(self, target: Target) -> Change | None:
        weight = self.moved(target, "weight")
        offset = self.moved(target, "bias") if self.whole else None
        if weight is None:
            return None if offset is None else Full(diff_b=offset)
        if weight.ndim < 2:
            return Full(diff=weight, diff_b=offset)
        return replace(truncated(weight, self.size), diff_b=offset)

    def moved(self, target: Target, kind: str) -> Tensor | None:
        """By how much a parameter differs, None where it does not."""
        own = Target(target.part, f"{target.path}.{kind}")
        if (name := self.places.get(own)) is None:
            return None
        tuned, base = (self.modules.split(name, value.tensor(name))[own] for value in (self.tuned, self.base))
        difference = tuned - base
        return difference if difference.any() else None

    def sources(self) -> Iterator[Source]:
        yield from self.tuned.sources()
        yield from self.base.sources()
