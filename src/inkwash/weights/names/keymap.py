"""Two-way tables between dialects of tensor names.

A table maps the names of this library to those of another dialect. An entry's key is a dotted prefix: a
module path or a whole tensor name, where `{}` stands for a number that both sides share. Its value is the
other dialect's prefix, a `Move` where the tensors differ too, or None for a deliberate drop. The longest
prefix that fits a name claims it, and the rest of the name is kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import Tensor

from inkwash.files import ModelFileError

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Move:
    """One tensor here, `names` there: `there` makes theirs of ours, and `back` ours of theirs."""

    names: tuple[str, ...]
    there: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor]
    back: Callable[[Sequence[Tensor]], Tensor] = lambda tensors: tensors[0]


Table = Mapping[str, str | Move | None]


def dense(name: str, axes: int = 2) -> Move:
    """A 1x1 convolution here, a Linear there: the weight (D, C, 1, 1) becomes (D, C); a bias stays.

    axes: over how many the convolution goes.
    """
    ones = (1,) * axes
    return Move(
        (name,),
        lambda tensor: [tensor if tensor.ndim == 1 else tensor.view(tensor.shape[:2])],
        lambda tensors: tensors[0] if tensors[0].ndim == 1 else tensors[0].view(*tensors[0].shape[:2], *ones),
    )


def transposed(name: str) -> Move:
    """A matrix here, its transpose there."""
    return Move((name,), lambda tensor: [tensor.mT.contiguous()], lambda tensors: tensors[0].mT.contiguous())


def unstacked(*names: str) -> Move:
    """One tensor here, equal parts of its first axis there, in the order of `names`."""
    return Move(
        names,
        lambda tensor: tensor.unflatten(0, (len(names), -1)).unbind(),
        lambda tensors: torch.cat(list(tensors)),
    )


def heads_apart(num_heads: int, *names: str) -> Move:
    """Each head's parts side by side in the first axis here; there, the parts one by one, each of all heads.

    A weight is that of a convolution of width 1 here, and of a Linear there.
    """

    def there(tensor: Tensor) -> Sequence[Tensor]:
        flat = tensor if tensor.ndim == 1 else tensor.view(tensor.shape[:2])
        return [part.flatten(0, 1) for part in flat.unflatten(0, (num_heads, len(names), -1)).unbind(1)]

    def back(tensors: Sequence[Tensor]) -> Tensor:
        made = torch.stack([tensor.unflatten(0, (num_heads, -1)) for tensor in tensors], 1).flatten(0, 2)
        return made if made.ndim == 1 else made[..., None]

    return Move(names, there, back)


class UnknownKeys(ModelFileError):
    """Names that nothing claims, or that nothing fills."""

    def __init__(self, problem: str, keys: Iterable[str], known: Iterable[str]):
        keys, known = sorted(keys), list(known)
        lines = []
        for key in keys[:8]:
            near = get_close_matches(key[:200], known, n=3)
            lines.append(f"  {key[:200]}" + (f" (nearest: {', '.join(near)})" if near else ""))
        more = [f"  and {len(keys) - 8} more"] if len(keys) > 8 else []
        super().__init__("\n".join([f"{len(keys)} tensors {problem}:", *lines, *more]))


class Index:
    """Prefixes by shape, the shape being the parts of a name with each number as `{}`."""

    def __init__(self, entries: Iterable[tuple[str, str, Move | None, int]]):
        self.entries: dict[tuple[str, ...], list[tuple[list[str], str, Move | None, int]]] = {}
        for prefix, ours, move, part in entries:
            parts = prefix.split(".")
            self.entries.setdefault(self.shape(parts), []).append((parts, ours, move, part))

    @staticmethod
    def shape(parts: Sequence[str]) -> tuple[str, ...]:
        return tuple("{}" if part.isdecimal() else part for part in parts)

    def find(self, key: str) -> tuple[str, list[str], Move | None, int] | None:
        """The entry that claims `key`: our full name, the other dialect's, the move (None to drop), and the part."""
        parts = key.split(".")
        shape = self.shape(parts)
        for end in range(len(parts), 0, -1):
            for prefix, ours, move, part in self.entries.get(shape[:end], ()):
                pairs = list(zip(prefix, parts[:end], strict=True))
                if all(a in ("{}", b) for a, b in pairs):
                    numbers = [b for a, b in pairs if a == "{}"]
                    rest = "".join(f".{b}" for b in parts[end:])
                    theirs = [name.format(*numbers) + rest for name in (move.names if move else ())]
                    return ours.format(*numbers) + rest, theirs, move, part
        return None


def translate(
    tensors: Mapping[str, Tensor],
    table: Table,
    *,
    inverse: bool = False,
    expected: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Rename each tensor, and reshape it where the table says so.

    inverse: from the other dialect to this library's names. expected: the names that must come out, all of
    them and no others, such as a module's state_dict. A None entry drops its names in both directions.
    Tensors are views of those given wherever the move allows.

    Raises UnknownKeys, with the nearest names, where nothing claims a name, where two tensors would get one
    name, where a part of a tensor is missing, and where `expected` is not met.
    """
    moves = {ours: Move((move,)) if isinstance(move, str) else move for ours, move in table.items()}
    both = [(ours, ours, move, 0) for ours, move in moves.items()]
    back = [(name, ours, m, i) for ours, m in moves.items() if m for i, name in enumerate(m.names)]
    entries = [entry for entry in both if entry[2] is None] + back if inverse else both
    index = Index(entries)

    out: dict[str, Tensor] = {}
    gathered: dict[str, tuple[list[str], Move, dict[int, Tensor]]] = {}
    unclaimed, doubled = [], []
    for key, tensor in tensors.items():
        found = index.find(key)
        if found is None:
            unclaimed.append(key)
            continue
        ours, theirs, move, part = found
        if move is None:
            continue
        if inverse:
            slots = gathered.setdefault(ours, (theirs, move, {}))[2]
            doubled += [key] if part in slots else []
            slots[part] = tensor
        else:
            doubled += [name for name in theirs if name in out]
            out |= zip(theirs, changed(move.there, tensor, key), strict=True)
    missing = [t for theirs, _, slots in gathered.values() for i, t in enumerate(theirs) if i not in slots]
    prefixes = [entry[0] for entry in entries]
    for problem, keys in (("not known", unclaimed), ("given twice", doubled), ("missing", missing)):
        if keys:
            raise UnknownKeys(problem, keys, tensors if keys is missing else prefixes)

    for ours, (_, move, slots) in gathered.items():
        out[ours] = changed(move.back, [slots[i] for i in range(len(slots))], ours)
    if expected is not None:
        expected = set(expected)
        for problem, keys in (("not expected", out.keys() - expected), ("missing", expected - out.keys())):
            if keys:
                raise UnknownKeys(problem, keys, expected if problem == "not expected" else out)
    return out


def changed(change: Callable[[A], B], value: A, name: str) -> B:
    """The result of `change` for a tensor; a shape that it cannot take is the file's fault."""
    try:
        return change(value)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = [tuple(t.shape) for t in ([value] if isinstance(value, Tensor) else value)]  # pyright: ignore
        raise ModelFileError(f"{name} has a shape that does not fit: {shapes}") from error
