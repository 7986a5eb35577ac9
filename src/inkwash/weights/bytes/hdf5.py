"""HDF5, as far as Keras's weights need it: groups of little-endian float arrays that lie in one piece each.

Format: HDF5 File Format Specification 1.1, superblock version 0. Offsets and lengths are of eight bytes.
"""

import mmap
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from inkwash.files import ModelFileError

MAGIC = b"\x89HDF\r\n\x1a\n"
ROOT = 64  # where the address of the root group's header is
MAX_DEPTH = 16
MAX_OBJECTS = 100_000
FLOATS = {2: torch.float16, 4: torch.float32, 8: torch.float64}
SPACE, TYPE, LAYOUT, CONTINUED, TABLE = 1, 3, 8, 16, 17  # kinds of messages in an object's header


class Reader:
    """A file's bytes, and how many of its objects were read."""

    def __init__(self, data: mmap.mmap):
        self.data, self.seen = data, 0

    def take(self, at: int, size: int) -> bytes:
        """Return `size` bytes from position `at`. Raises ModelFileError where the file ends before."""
        if not 0 <= at <= at + size <= len(self.data):
            raise ModelFileError(f"it ends before byte {min(at + size, 2**63)}")
        return self.data[at : at + size]

    def number(self, at: int, size: int = 8) -> int:
        return int.from_bytes(self.take(at, size), "little")

    def expect(self, at: int, mark: bytes) -> None:
        if self.take(at, len(mark)) != mark:
            raise ModelFileError(f"byte {at} begins no {mark.decode()}")

    def messages(self, at: int) -> dict[int, int]:
        """Start of each kind of message in an object's header."""
        self.seen += 1
        if self.seen > MAX_OBJECTS:
            raise ModelFileError(f"it has more than {MAX_OBJECTS:,} objects")
        if self.number(at, 1) != 1:
            raise ModelFileError("its objects have headers of a version that is not covered")
        found: dict[int, int] = {}
        blocks = [(at + 16, self.number(at + 8, 4))]
        for begin, size in blocks:
            place = begin
            while place + 8 <= begin + size:
                kind, length = self.number(place, 2), self.number(place + 2, 2)
                if kind == CONTINUED and len(blocks) < MAX_DEPTH:
                    blocks.append((self.number(place + 8), self.number(place + 16)))
                found.setdefault(kind, place + 8)
                place += 8 + length
        return found

    def children(self, table: int) -> Iterator[tuple[str, int]]:
        """The names of a group's objects, and where their headers are; of the message that says its table."""
        tree, heap = self.number(table), self.number(table + 8)
        self.expect(heap, b"HEAP")
        names = self.number(heap + 24)
        for node in self.leaves(tree, MAX_DEPTH):
            self.expect(node, b"SNOD")
            for k in range(self.number(node + 6, 2)):
                entry = node + 8 + 40 * k
                yield self.text(names + self.number(entry)), self.number(entry + 8)

    def leaves(self, tree: int, depth: int) -> Iterator[int]:
        """The nodes of symbols below a B-tree's node."""
        self.expect(tree, b"TREE")
        self.seen += 1
        if depth == 0 or self.seen > MAX_OBJECTS:
            raise ModelFileError("its groups are nested too deep")
        for k in range(self.number(tree + 6, 2)):
            child = self.number(tree + 32 + 16 * k)
            yield from self.leaves(child, depth - 1) if self.number(tree + 5, 1) else (child,)

    def text(self, at: int) -> str:
        end = self.data.find(b"\0", at, at + 256)
        if at < 0 or end < 0:
            raise ModelFileError("it has a name without an end")
        return self.data[at:end].decode("utf-8", "replace")

    def tensor(self, name: str, found: dict[int, int]) -> Tensor:
        """The array of an object's messages, copied."""
        space, type_, layout = (found[kind] for kind in (SPACE, TYPE, LAYOUT))
        rank = self.number(space + 1, 1)
        begin = space + (8 if self.number(space, 1) == 1 else 4)
        shape = [self.number(begin + 8 * k) for k in range(rank)]
        size = self.number(type_ + 4, 4)
        if self.number(type_, 1) & 15 != 1 or self.number(type_ + 1, 1) & 1 or size not in FLOATS:
            raise ModelFileError(f"{name[:200]} is not an array of little-endian floats")
        if self.number(layout, 1) != 3 or self.number(layout + 1, 1) != 1:
            raise ModelFileError(f"{name[:200]} does not lie in one piece")
        at, length = self.number(layout + 2), self.number(layout + 10)
        if rank > 8 or 0 in shape or prod(shape) * size != length:
            raise ModelFileError(f"{name[:200]} of {length:,} bytes has a shape of another size")
        return torch.frombuffer(bytearray(self.take(at, length)), dtype=FLOATS[size]).view(shape)


def read_hdf5(data: mmap.mmap) -> dict[str, Tensor]:
    """The arrays of a file by their paths, joined by dots. Raises ModelFileError for unsupported content."""
    reader = Reader(data)
    if (reader.number(8, 1), reader.number(13, 1), reader.number(14, 1)) != (0, 8, 8):
        raise ModelFileError("its superblock is of a version that is not covered")
    tensors: dict[str, Tensor] = {}

    def visit(name: str, at: int, depth: int) -> None:
        found = reader.messages(at)
        if TABLE in found:
            if depth == MAX_DEPTH:
                raise ModelFileError("its groups are nested too deep")
            for child, place in reader.children(found[TABLE]):
                visit(f"{name}.{child}" if name else child, place, depth + 1)
        elif {SPACE, TYPE, LAYOUT} <= found.keys():
            tensors[name] = reader.tensor(name, found)

    visit("", reader.number(ROOT), 0)
    return tensors
