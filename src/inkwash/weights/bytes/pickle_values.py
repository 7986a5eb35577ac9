"""Values that pickles hold: keys, numbers and text, each read with its limits."""

import re
from collections.abc import Iterable
from typing import Any

from inkwash.files import ModelFileError

MAX_INTEGER = 32  # bytes
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")


class Opaque:
    """Stands for an object of a class that is not known here. `state` holds a module's tables, by their names."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[Any, Any] = {}


def keys(values: Iterable[Any]) -> list[Any]:
    """The values, if each may be a key. Hashes of larger numbers and of tuples could be made to collide, or to hang."""
    values = list(values)
    for value in values:
        small = isinstance(value, int) and abs(value) < 2**31
        if not (small or value is None or isinstance(value, str | bytes | Opaque)):
            raise ModelFileError(f"its pickle has a key of type {type(value).__name__}")
    return values


def fill(target: Any, pairs: Iterable[Any]) -> dict[Any, Any]:
    if not isinstance(target, dict):
        raise ModelFileError(f"its pickle sets an item of a value of type {type(target).__name__}")
    for name, value in pairs:
        target[keys([name])[0]] = value
    return target


def in_pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def utf8(content: bytes) -> str:
    return content.decode("utf-8")


def latin1(content: bytes) -> str:
    return content.decode("latin1")


def integer(content: bytes) -> int:
    if len(content) > MAX_INTEGER:
        raise ModelFileError(f"its pickle has an integer of {len(content)} bytes")
    return int.from_bytes(content, "little", signed=True)


def text_integer(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if len(line) > 2 * MAX_INTEGER:
        raise ModelFileError(f"its pickle has an integer of {len(line)} digits")
    return int(line.removesuffix(b"L"))


def quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:] or b"\\" in line:
        raise ModelFileError("its pickle has a string with escapes, which is not covered")
    return latin1(line[1:-1])


def escaped(line: bytes) -> str:
    """Resolve escapes by hand: Python would import its codec at first use, and here nothing is imported."""
    text = ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), latin1(line))
    text.encode()  # a lone surrogate raises
    return text
