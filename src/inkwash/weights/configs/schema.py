"""One kind of config.json: its fields, and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from inkwash.files import ModelFileError

Json = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One kind of config.json."""

    kind: str
    ours: dict[str, Any]  # fields that set our config, with the value of a missing one (... must be there)
    fixed: dict[str, Any]  # fields that must have this value
    free: frozenset[str]  # fields that do not change the network

    def read(self, data: Mapping[str, Any]) -> Json:
        """The fields that set our config, checked to be the only ones that matter."""
        if not isinstance(data, Mapping):
            raise ModelFileError(f"{self.kind} config: {type(data).__name__} given, an object wanted")
        known = [*self.ours, *self.fixed, *self.free]
        for field, value in data.items():
            if field not in known and not field.startswith("_"):
                near = get_close_matches(field[:200], known, n=3)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise ModelFileError(f"{self.kind} config: unknown field {field[:200]!r}{hint}")
            if field in self.fixed and value != self.fixed[field]:
                raise self.refuse(field, value, repr(self.fixed[field]))
        read = self.ours | {field: data[field] for field in self.ours if field in data}
        for field, value in read.items():
            if value is ...:
                raise ModelFileError(f"{self.kind} config: {field} is missing")
        return read

    def refuse(self, field: str, value: object, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.kind} config: {field} is {repr(value)[:200]}, and not {wanted}")

    def whole(self, read: Json, field: str) -> int:
        """A whole number of at least 1."""
        value = read[field]
        if type(value) is not int or value < 1:
            raise self.refuse(field, value, "a whole number of at least 1")
        return value

    def each(self, read: Json, field: str, count: int | None = None) -> tuple[int, ...]:
        """Read integers, `count` of them; with a count one number may stand for all."""
        value = read[field]
        if count is not None and type(value) is int:
            value = [value] * count
        if not isinstance(value, list | tuple) or not value or count not in (None, len(value)):
            raise self.refuse(field, value, f"a list of {count or 'some'} whole numbers")
        return tuple(self.whole({field: number}, field) for number in value)

    def same(self, read: Json, field: str, count: int) -> int:
        """One whole number for all levels, written once or `count` times."""
        values = self.each(read, field, count)
        if len(set(values)) > 1:
            raise self.refuse(field, read[field], "one value for all levels")
        return values[0]

    def multiples(self, read: Json) -> tuple[int, tuple[int, ...]]:
        """Channels of the first level, and every level's as a multiple of it."""
        widths = self.each(read, "block_out_channels")
        if any(width % widths[0] for width in widths):
            raise self.refuse("block_out_channels", list(widths), f"multiples of the first, {widths[0]}")
        return widths[0], tuple(width // widths[0] for width in widths)

    def widths(self, channels: int, channel_mult: tuple[int, ...]) -> list[int]:
        if channel_mult[0] != 1:
            raise self.refuse("channel_mult", channel_mult, "a first multiple of 1")
        return [channels * mult for mult in channel_mult]


def sized(sample_size: int | None) -> Json:
    return {} if sample_size is None else {"sample_size": sample_size}
