"""Git re-basin by weight matching (Ainsworth et al. 2022, section 3.2 and algorithm 1): a model's hidden units put in the
order in which its weights are nearest to another model's. What the model computes stays the same.

n units, m of their weights. orders: for each place among the units, which of the second model's comes there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.merge.blocks import component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source
from inkwash.merge.units import Group, Place, Units, Walk, autoencoder_units, text_units, unet_units
from inkwash.merge.writing import check_finite
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import CLIPTextConfig
from inkwash.weights.checkpoint import Checkpoint, undrawn
from inkwash.weights.models.folder import read_folder
from inkwash.weights.models.single import read_single, text_prefixes
from inkwash.weights.models.single_names import AUTOENCODER, TEXT
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.wrappers import UNET

SWEEPS = 50  # over all groups at most; a few are usual
LEAST = 1e-6  # by which a new order is better, as a share: less is rounding
Orders = dict[Units, Tensor]
Read = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class Aligned(Value):
    """The model `inner`, its hidden units in the order of those of `like`. Raises ModelFileError without SciPy.

    A network that one of both lacks keeps its order, and what others see of it.
    """

    like: Value
    inner: Value
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        try:
            import scipy.optimize  # noqa: F401
        except ImportError as error:
            raise ModelFileError("rebasin takes SciPy: pip install 'inkwash[rebasin]'") from error

    @property
    def infos(self) -> Mapping[str, Info]:
        return self.inner.infos

    def sources(self) -> Iterator[Source]:
        return self.inner.sources()

    def tensor(self, name: str) -> Tensor:
        made = self.inner.tensor(name)
        with self.lock:  # two threads compute tensors, and wait for the same orders
            orders = self.orders
        parts = split(name, made)
        if not any(part in self.places for part in parts):
            return made
        return join(
            name, {part: moved(value, self.places.get(part, ()), orders) for part, value in parts.items()}
        )

    @cached_property
    def groups(self) -> list[Group]:
        path = next(self.like.sources()).path
        checkpoint = read_folder(path) if path.is_dir() else read_single(path, whole=False)
        has = [
            {
                start
                for start in (UNET, AUTOENCODER, *TEXT)
                if any(name.startswith(start) for name in value.infos)
            }
            for value in (self.like, self.inner)
        ]
        return groups_of(checkpoint, has[0] & has[1])

    @cached_property
    def places(self) -> dict[str, list[tuple[Units, Place]]]:
        return by_name(self.groups)

    @cached_property
    def orders(self) -> Orders:
        parts = [self.parts(value) for value in (self.like, self.inner)]

        def read(value: Value, where: Mapping[str, str]) -> Read:
            return lambda part: split(where[part], value.tensor(where[part]))[part]

        first, second = (
            read(value, where) for value, where in zip((self.like, self.inner), parts, strict=True)
        )
        return matched(first, second, self.groups, parts[0].keys() & parts[1].keys())

    @staticmethod
    def parts(value: Value) -> dict[str, str]:
        """Our names of the networks' tensors -> those of a single file."""
        return {
            part: name
            for name, info in value.infos.items()
            if component_of(name)
            for part in split(name, torch.empty(info.shape, device="meta"))
        }


def table_of(name: str) -> tuple[str, Mapping[str, Any] | None]:
    """The prefix of a text encoder whose tensors have other names in a file than here, and their table."""
    return next(
        ((start, table) for start, table in TEXT.items() if table and name.startswith(start)), ("", None)
    )


def split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A single file's tensor as our networks have it, one or several, under our names behind the file's prefix."""
    start, table = table_of(name)
    if table is None or component_of(name) is None:
        return {name: tensor}
    return {
        start + part: value for part, value in translate({name.removeprefix(start): tensor}, table).items()
    }


def join(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    """The single file's tensor again."""
    start, table = table_of(name)
    if table is None:
        return parts[name]
    ours = {part.removeprefix(start): value for part, value in parts.items()}
    return translate(ours, table, inverse=True)[name.removeprefix(start)]


def groups_of(checkpoint: Checkpoint, prefixes: Iterable[str]) -> list[Group]:
    """The units of a checkpoint's networks that have one of these prefixes in a single file."""
    unet, stage, prefixes = checkpoint.unet.config, checkpoint.autoencoder.config, set(prefixes)
    texts = [text.config for text in checkpoint.text if isinstance(text.config, CLIPTextConfig)]
    # a context of something else, or a pooled text that is the last units themselves, keeps its order
    seen = sum(text.width for text in texts) == unet.context_dim and checkpoint.cond_stage is None
    seen &= unet.vector_dim is None or not texts or texts[-1].projection_dim is not None
    walks, context = [], []
    for config, prefix in zip(texts if seen else (), text_prefixes(checkpoint), strict=False):
        walk = Walk(prefix)
        context += text_units(walk, undrawn(config)) if prefix in prefixes else [Units(config.width)]
        walks.append(walk)
    walks.append(walk := Walk(UNET))
    unet_units(walk, undrawn(unet), context)
    if AUTOENCODER in prefixes and isinstance(stage, AutoencoderConfig):
        walks.append(walk := Walk(AUTOENCODER))
        autoencoder_units(walk, undrawn(stage))
    return [group for walk in walks for group in walk.groups]


def by_name(groups: Iterable[Group]) -> dict[str, list[tuple[Units, Place]]]:
    """The units in each tensor, by its name."""
    found = defaultdict(list)
    for group in groups:
        for units in group.members:
            for place in units.places:
                found[place.name].append((units, place))
    return dict(found)


def moved(tensor: Tensor, places: Iterable[tuple[Units, Place]], orders: Orders) -> Tensor:
    """A tensor with its units in these orders; those without one stay."""
    for units, place in places:
        if units in orders:
            index = torch.arange(tensor.shape[place.axis])
            index[place.start : place.start + units.size] = place.start + orders[units]
            tensor = tensor.index_select(place.axis, index)
    return tensor


def matched(first: Read, second: Read, groups: Sequence[Group], names: Iterable[str]) -> Orders:
    """The orders in which the second model's weights have the largest inner product with the first one's that coordinate
    descent finds: one group after the other, the others' orders being given.

    It starts from the orders as they are, or where that is better from those by what a unit's weights are, whatever their
    order: sorted. names: of the tensors that both have. Raises ModelFileError for one that is not finite.
    """
    places = {name: found for name, found in by_name(groups).items() if name in set(names)}

    def pair(name: str, orders: Orders) -> tuple[Tensor, Tensor]:
        a, b = first(name), second(name)
        for each in (a, b):
            check_finite(name, each, each)
        for axis, size in enumerate(
            map(min, a.shape, b.shape)
        ):  # an inpainting model has more input channels
            a, b = a.narrow(axis, 0, size), b.narrow(axis, 0, size)
        return a, moved(b, places[name], orders)

    def similarities(group: Group, orders: Orders, by_values: bool = False) -> list[Tensor]:
        others = {units: order for units, order in orders.items() if units not in group.members}
        made = []
        for units in group.members:
            total = torch.zeros(units.size, units.size)
            for place in units.places:
                if place.name in places:
                    both = (rows(each, place, units.size) for each in pair(place.name, others))
                    a, b = (each.sort(1).values if by_values else each for each in both)
                    total.addmm_(a, b.T)
            made.append(total)
        return made

    def product(orders: Orders) -> float:
        return sum(float(torch.sum(torch.mul(*pair(name, orders)), dtype=torch.float64)) for name in places)

    with torch.inference_mode():
        start = {units: torch.arange(units.size) for group in groups for units in group.members}
        sorted_start: Orders = {}
        for group in groups:
            sorted_start |= best(group, similarities(group, {}, by_values=True))
        orders = max(start, sorted_start, key=product)
        return descended(orders, groups, similarities)


def descended(
    orders: Orders, groups: Sequence[Group], similarities: Callable[[Group, Orders], list[Tensor]]
) -> Orders:
    """Groups that gain by it in their best order, until none does. A group is looked at again when a neighbour moved."""
    together = defaultdict(set)
    for i, group in enumerate(groups):
        for name in {place.name for units in group.members for place in units.places}:
            together[name].add(i)
    waiting = set(range(len(groups)))
    for _ in range(SWEEPS):
        for i in sorted(waiting):
            waiting.discard(i)
            group = groups[i]
            near = similarities(group, orders)
            new, pairs = best(group, near), list(zip(group.members, near, strict=True))
            old, gained = (
                sum(float(each.double().gather(1, of[units][:, None]).sum()) for units, each in pairs)
                for of in (orders, new)
            )
            if gained - old > LEAST * abs(old):
                orders |= new
                for units in group.members:
                    waiting |= set().union(*(together[place.name] for place in units.places)) - {i}
        if not waiting:
            break
    return orders


def rows(tensor: Tensor, place: Place, size: int) -> Tensor:
    """The weights of units (n, m)."""
    return tensor.narrow(place.axis, place.start, size).movedim(place.axis, 0).reshape(size, -1)


def best(group: Group, near: Sequence[Tensor]) -> Orders:
    """The orders that add up to the most similarity (n, n), of those that the group allows."""
    arrays = [np.asarray(each, np.float64) for each in near]
    if not group.blocks:
        ((units, each),) = zip(group.members, arrays, strict=True)
        inside = [
            cell.start + assigned(each[cell.start : cell.stop, cell.start : cell.stop])
            for cell in units.cells
        ]
        return {units: torch.from_numpy(np.concatenate(inside))}
    num = group.blocks
    value, inner = np.zeros((num, num)), []
    for each in arrays:  # by pairs of blocks, the best order within and what it is worth
        pairs = each.reshape(num, len(each) // num, num, -1).transpose(0, 2, 1, 3)
        orders = np.zeros(pairs.shape[:3], np.int64)
        if pairs.shape[2] > 1:
            for i, j in np.ndindex(num, num):
                orders[i, j] = assigned(pairs[i, j])
        value += np.take_along_axis(pairs, orders[..., None], 3).sum((2, 3))
        inner.append(orders)
    blocks = assigned(value)
    return {
        units: torch.from_numpy(
            np.concatenate([j * orders.shape[2] + orders[i, j] for i, j in enumerate(blocks)])
        )
        for units, orders in zip(group.members, inner, strict=True)
    }


def assigned(near: np.ndarray) -> np.ndarray:
    """The column of each row (n,), each once, that add up to the most."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(near, maximize=True)[1]
