"""Files of `torch.save`: the zip archive of torch 1.6 and later, and the stream of pickles before it.

Tensors of an archive are views of the mapped file. Those of a stream are copied: nothing in it is aligned.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any, TypeGuard

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.bytes.pickle_machine import MAX_BYTES, Machine
from inkwash.weights.bytes.pickle_values import Opaque
from inkwash.weights.bytes.torch_types import TABLE, Storage
from inkwash.weights.bytes.zip_archive import locate, read_directory

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a stream
MAX_TENSORS = 20_000
MAX_DEPTH = 64  # containers in one another
MAX_VALUES = 200_000  # met in them
MAX_NAME = 256  # characters of a tensor's name, which may be made of many keys
CONTAINERS = (dict, list, tuple, Opaque)
PLAIN = str | bytes | int | float | complex | torch.dtype | None
ALIGNMENT = 8  # bytes, enough for any dtype's elements


@dataclass(frozen=True)
class Pickled:
    """A file's contents, and the names in it that stayed opaque."""

    value: Any
    foreign: list[str]


def view(data: mmap, at: int, size: int, alignment: int = ALIGNMENT) -> Tensor:
    """`size` bytes as a uint8 tensor: the mapped ones, or a copy where they aren't aligned."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    content = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=at)
    return content.clone() if at % alignment else content


def read_archive(data: mmap) -> Pickled:
    """A zip archive: one folder that holds data.pkl and data/KEY for each storage. Raises ModelFileError."""
    entries = read_directory(data)
    found = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise ModelFileError("it is a zip archive, but none of torch's: there is no data.pkl in one folder")
    root = found[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise ModelFileError("it is a TorchScript program; save its state_dict instead")

    def find(name: str) -> tuple[int, int]:
        if name not in entries:
            raise ModelFileError(f"it has no entry {name!r}")
        return locate(data, name, entries[name]), entries[name].size

    def content(name: str) -> bytes:
        at, size = find(name)
        if size > MAX_BYTES:
            raise ModelFileError(f"its {name} has {size:,} bytes; at most {MAX_BYTES:,} are read")
        return data[at : at + size]

    if f"{root}byteorder" in entries and content(f"{root}byteorder") != b"little":
        raise ModelFileError("its numbers are not little-endian")
    contents: dict[str, Tensor] = {}

    def load(key: str, dtype: torch.dtype, num: int) -> Tensor:
        name = f"{root}data/{key}"
        if key not in contents:
            contents[key] = view(data, *find(name))
        if contents[key].numel() != num * dtype.itemsize:
            raise ModelFileError(
                f"its {name} has {contents[key].numel()} bytes, {num * dtype.itemsize} are wanted"
            )
        return contents[key]

    machine = Machine(content(found[0]), TABLE, lambda name: storage(name, load))
    return Pickled(machine.run(), sorted(machine.foreign))


def read_stream(data: mmap) -> Pickled:
    """Pickles: magic number, version, system, value, storage keys; then the storages. Raises ModelFileError."""
    contents: dict[str, tuple[Tensor, int]] = {}  # bytes to be filled, and an element's size
    total = 0

    def load(key: str, dtype: torch.dtype, num: int) -> Tensor:
        nonlocal total
        size = num * dtype.itemsize
        if key not in contents:
            total += size + 8
            if total > len(data):
                raise ModelFileError("its storages are larger than the file")
            contents[key] = torch.empty(size, dtype=torch.uint8), dtype.itemsize
        if contents[key][0].numel() != size:
            raise ModelFileError(f"its storage {key!r} has two sizes")
        return contents[key][0]

    machine = Machine(data, TABLE, lambda name: storage(name, load))
    if not is_integer(machine.run(), MAGIC):
        raise ModelFileError("it is a pickle, but not what torch.save writes")
    if not is_integer(machine.run(), VERSION):
        raise ModelFileError("it is of a version of torch.save that is not known")
    system = machine.run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ModelFileError("its numbers are not little-endian")
    value = machine.run()
    fill(contents, machine.run(), data, machine.at)
    return Pickled(value, sorted(machine.foreign))


def fill(contents: dict[str, tuple[Tensor, int]], keys: Any, data: mmap, at: int) -> None:
    """Read the storages that follow the list of their keys, each behind its number of elements."""
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys):
        raise ModelFileError("its list of storages is broken")
    if len(set(keys)) != len(keys) or set(keys) != set(contents):
        raise ModelFileError("its list of storages does not fit its tensors")
    for key in keys:
        content, element = contents[key]
        if at + 8 + content.numel() > len(data):
            raise ModelFileError(f"its storage {key!r} is cut short")
        if struct.unpack_from("<q", data, at)[0] * element != content.numel():
            raise ModelFileError(f"its storage {key!r} has not the number of elements that its tensors want")
        content.copy_(view(data, at + 8, content.numel(), alignment=1))
        at += 8 + content.numel()


def storage(name: Any, load: Callable[[str, torch.dtype, int], Tensor]) -> Any:
    """The storage of a persistent id: ("storage", dtype, key, location, number of elements, part of it or None)."""
    if isinstance(name, tuple) and len(name) == 4 and name[0] == "module":  # class, file, source
        return name[1]
    if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != "storage":
        raise ModelFileError("its pickle refers to data outside by no storage's name")
    _, dtype, key, _, num, part = (*name, None)[:6]
    if not isinstance(dtype, torch.dtype) or type(key) is not str or len(key) > MAX_NAME or not is_count(num):
        raise ModelFileError("its pickle refers to a storage by no proper key, dtype or size")
    content = load(key, dtype, num)
    if part is not None:
        _, begin, num_part = part
        if not is_count(begin) or not is_count(num_part) or begin + num_part > num:
            raise ModelFileError(f"it uses a part of storage {key!r} that reaches outside")
        content = content[begin * dtype.itemsize : (begin + num_part) * dtype.itemsize]
    return Storage(dtype, content)


def is_integer(value: Any, wanted: int) -> bool:
    return type(value) is int and value == wanted  # of a tensor, == is a tensor


def is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**56


def tabulate(pickled: Pickled) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values by dotted names. A state_dict at the top is opened, and then has all the tensors."""
    branches = children(pickled.value) if isinstance(pickled.value, CONTAINERS) else {"tensor": pickled.value}
    wrapped = isinstance(branches.get("state_dict"), dict | Opaque)
    walk, dropped = Walk(), []
    leaves: dict[str, Any] = {}
    if wrapped:
        walk.collect("", branches.pop("state_dict"), leaves)
    for name, value in branches.items():
        beside: dict[str, Any] = {} if wrapped else leaves
        if name.startswith("optimizer") and isinstance(value, CONTAINERS):
            dropped.append(name)
            continue
        walk.collect(name, value, beside)
        if wrapped and any(isinstance(leaf, Tensor) for leaf in beside.values()):
            dropped.append(name)
        elif wrapped:
            for key, leaf in beside.items():
                leaves.setdefault(key, leaf)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    if not tensors:
        asked = f"; it asks for {pickled.foreign[0]!r}, which was not run" if pickled.foreign else ""
        raise ModelFileError(f"it holds no tensors{asked}")
    if len(tensors) > MAX_TENSORS:
        raise ModelFileError(f"it has {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read")
    metadata = {name: leaf for name, leaf in leaves.items() if name not in tensors}
    return tensors, metadata | {"dropped": dropped, "foreign": pickled.foreign}


class Walk:
    """Goes through containers, which may share parts or hold themselves: it ends after MAX_VALUES."""

    def __init__(self) -> None:
        self.num = 0

    def collect(self, name: str, value: Any, into: dict[str, Any], depth: int = 0) -> None:
        """Collect tensors and plain values by name. A list of plain values counts as one; opaque objects are left out."""
        is_list = isinstance(value, list | tuple)
        self.num += 1 + (len(value) if is_list else 0)
        if self.num > MAX_VALUES or depth > MAX_DEPTH or len(name) > MAX_NAME:
            raise ModelFileError("it holds too many values, or too deep in one another, or too long a name")
        if isinstance(value, PLAIN | Tensor) or (
            is_list and all(isinstance(child, PLAIN) for child in value)
        ):
            if name in into:
                raise ModelFileError(f"it has two values {name!r}")
            into[name] = value
        elif isinstance(value, CONTAINERS):
            for key, child in children(value).items():
                self.collect(f"{name}.{key}" if name else key, child, into, depth + 1)


def children(value: Any) -> dict[str, Any]:
    """A container's contents, by names: of an opaque module, its parameters, buffers and modules."""
    if isinstance(value, Opaque):
        tables = [table for table in value.state.values() if isinstance(table, dict)]
        items = [item for table in tables for item in table.items()]
    else:
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
    found: dict[str, Any] = {}
    for key, child in items:
        key = key.name if isinstance(key, Opaque) else key
        name = str(key) if isinstance(key, str | int | None) else ""
        if not name or len(name) > MAX_NAME or name in found:
            raise ModelFileError("it has a key that is twice there, too long or no text")
        found[name] = child
    return found
