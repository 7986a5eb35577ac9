"""Files of tensors that are broken, or that want something run: made here for the tests and for the longer benchmark.

The hostile ones ask for the command `true`, so that nothing comes of it should one ever work.
"""

import io
import json
import struct
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from inkwash.files import ModelFileError
from inkwash.weights.bytes.tensor_file import read_tensors

ODD_NUMBERS = [
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
]
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**62,
    2**63,
    10**30,
    "",
    "F32",
    "\n",
    [],
    {},
    [[]],
    [0, 0],
    [-1],
]
OPCODES = b"(.012FGIJKLMNPQRSTUVXabcdeghijloprstuq})]" + bytes(range(0x80, 0x99))


def saved(value: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    """The bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return stream.getvalue()


def safetensors_seeds() -> list[bytes]:
    one = {"a.weight": torch.ones(2, 3), "a.bias": torch.arange(3.0)}
    other = {
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.arange(5),
        "d": torch.tensor([True]),
        "e": torch.ones(0),
    }
    return [save(one), save(one | other, metadata={"format": "pt", "title": "two words"})]


def torch_seeds() -> list[bytes]:
    whole = torch.arange(12.0).view(3, 4)
    values: list[object] = [
        {
            "state_dict": {"w": whole, "row": whole[1], "t": whole.t()},
            "epoch": 3,
            "hooks": [1, 2.5, None, "x"],
        },
        {"string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 3))}, "name": "x"},
        torch.nn.Linear(2, 2).state_dict()
        | {"half": torch.ones(3).half(), "small": torch.ones(2).to(torch.float8_e5m2)},
    ]
    layouts = [(False, 2), (True, 2), (False, 4), (True, 5)]
    return [
        saved(value, legacy=legacy, protocol=protocol) for value in values for legacy, protocol in layouts
    ]


def mutated(data: bytes, random: Random) -> bytes:
    """The bytes after one to four changes: flips, odd numbers, cuts, and pieces moved, doubled or left out."""
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content) + 1)
        end = min(len(content), at + random.choice((1, 2, 8, 64)))
        kind = random.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            content[at:end] = random.randbytes(end - at)
        elif kind == 2:
            size = random.choice((1, 2, 4, 8))
            number = random.choice(ODD_NUMBERS) % 256**size
            content[at : at + size] = number.to_bytes(size, "little")
        elif kind == 3:
            del content[at:end]
        elif kind == 4:
            content[at:at] = content[end : end + random.choice((1, 8, 64))]
        elif kind == 5:
            content[at:at] = bytes([random.choice(OPCODES)])
        elif kind == 6 and random.random() < 0.3:
            del content[at:]
    return bytes(content)


def safetensors_mutants(random: Random) -> Iterator[bytes]:
    """Without end: in turn, bytes changed anywhere, and a header of proper JSON that says something else."""
    seeds = safetensors_seeds()
    while True:
        seed = random.choice(seeds)
        yield mutated(seed, random)
        size = int.from_bytes(seed[:8], "little")
        header = json.loads(seed[8 : 8 + size])
        twist(header, random)
        text = json.dumps(header).encode()
        length = random.choice(ODD_NUMBERS) if random.random() < 0.05 else len(text)
        yield length.to_bytes(8, "little") + text + seed[8 + size :]


def twist(header: dict[str, Any], random: Random) -> None:
    name = random.choice(list(header))
    target: Any = header
    while isinstance(target[name], dict | list) and target[name] and random.random() < 0.8:
        target = target[name]
        name = random.choice(list(target) if isinstance(target, dict) else range(len(target)))
    if random.random() < 0.2 and isinstance(target, dict):
        target[random.choice(("", "x", "__metadata__", "dtype"))] = target.pop(name)
    elif random.random() < 0.3 and type(target[name]) is int:
        target[name] += random.choice((-8, -4, -1, 1, 4, 8))
    else:
        target[name] = random.choice(ODD_VALUES)


def torch_mutants(random: Random) -> Iterator[bytes]:
    """Without end: in turn, bytes changed anywhere, and, for an archive, its pickle alone in a proper archive."""
    seeds = torch_seeds()
    while True:
        seed = random.choice(seeds)
        yield mutated(seed, random)
        if seed[:2] == b"PK":
            yield archive({"data.pkl": mutated(parts(seed)["data.pkl"], random)}, seed)


def parts(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as content:
        return {name.partition("/")[2]: content.read(name) for name in content.namelist()}


def archive(changes: dict[str, bytes], seed: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive with other parts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as content:
        for name, part in (parts(seed) | changes).items():
            content.writestr(f"archive/{name}", part)
    return stream.getvalue()


def stream(pickle: bytes) -> bytes:
    """A pickle as the value of a file before torch 1.6, with no storages."""
    begin = saved(0, legacy=True)
    at = begin.index(b"type_sizes")
    at = begin.index(b".", at) + 1
    return begin[:at] + pickle + b"\x80\x02]."


GADGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("__builtin__", "getattr"),
    ("builtins", "__import__"),
    ("runpy", "run_module"),
    ("socket", "create_connection"),
    ("importlib", "import_module"),
    ("pty", "spawn"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("functools", "partial"),
    ("pickle", "loads"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch", "serialization.os.system"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("antigravity_of_another_package", "main"),
]


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def long(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def tricks(module: str, name: str) -> dict[str, bytes]:
    """Ways in which a pickle's steps ask for a call, without the first step and the last."""
    found = f"c{module}\n{name}\n".encode()
    stacked = short(module) + short(name) + b"\x93"
    one = long("true") + b"\x85"
    storage = b"(" + long("storage") + found + long("0") + long("cpu") + b"K\x01tQ"
    return {
        "protocol 0": found + b"(Vtrue\ntR",
        "protocol 0 memo": found + b"p1\n0g1\n(Vtrue\ntR",
        "protocol 1": found + b"q\x01(U\x04truetR",
        "protocol 2": found + one + b"R",
        "protocol 4": stacked + one + b"R",
        "protocol 5": b"\x95\x10\x00\x00\x00\x00\x00\x00\x00" + stacked + b"\x94h\x00" + one + b"R",
        "instance": b"(Vtrue\n" + b"i" + found[1:],
        "object": b"(" + found + long("true") + b"o",
        "new": found + one + b"\x81",
        "new with keywords": stacked + one + b"}" + long("shell") + b"\x88s\x92",
        "build": b"ctypes\nSimpleNamespace\n)\x81}"
        + long("__setstate__")
        + found
        + b"sb"
        + long("true")
        + b"b",
        "extension": b"\x82\x01" + one + b"R",
        "in a dict's pairs": b"ccollections\nOrderedDict\n](" + found + one + b"RK\x01" + b"\x86e\x85R",
        "default factory": b"ccollections\ndefaultdict\n" + found + b"\x85R",
        "as a key": b"}" + found + one + b"RK\x01s",
        "as a storage's class": storage,
        "as a tensor's function": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + found
        + b"ctorch\nTensor\n"
        + one
        + b"NtR",
        "as a parameter": b"ctorch._utils\n_rebuild_parameter\n(" + found + one + b"R" + b"\x88NtR",
    }


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Each trick with each gadget: bare, as an archive or stream of its own, and beside a good tensor."""
    good = saved({"w": torch.ones(2)})
    tensor = parts(saved(torch.ones(2)))["data.pkl"][2:-1]
    for module, name in GADGETS:
        for trick, steps in tricks(module, name).items():
            title = f"{module}.{name} by {trick}"
            alone = b"\x80\x04" + steps + b"."
            beside = b"\x80\x04}" + long("w") + tensor + b"s" + long("x") + steps + b"s."
            yield f"{title}, bare", alone
            yield f"{title}, stream", stream(alone)
            yield f"{title}, archive", archive({"data.pkl": alone}, good)
            yield f"{title}, beside", archive({"data.pkl": beside}, good)


@dataclass
class Tally:
    """Outcomes of reading many files; seconds are of this process."""

    opened: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_file: bytes = b""


def read_all(files: Iterable[bytes], path: Path) -> Tally:
    """Read each file, and all elements that it is said to have. Any exception but ModelFileError comes out."""
    tally = Tally()
    for content in files:
        path.write_bytes(content)
        begin = time.process_time()
        try:
            for tensor in read_tensors(path).tensors.values():
                tensor.clone()
            tally.opened += 1
        except ModelFileError as error:
            said = str(error)
            assert said.startswith(f"{path} can't be read: ") and "\n" not in said, said
            tally.refused += 1
        seconds = time.process_time() - begin
        if seconds > tally.slowest:
            tally.slowest, tally.slowest_file = seconds, content
    return tally
