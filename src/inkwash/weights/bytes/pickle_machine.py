"""Python's pickles read as data: a machine of fixed steps, which imports nothing and calls nothing by name.

A pickle is a program for a stack machine. This one makes plain containers, numbers and text, and what the fixed
table that it is given makes. Any other name, or other kind of step, is one of three things:
- of Python's standard library, or of the ways in which torch rebuilds tensors: refused. No weights need the former,
  and no tensor may go missing because of the latter.
- anything else, as training checkpoints hold: an `Opaque`, which is its name. Calling it gives another one, and what
  it is given is dropped, except for the tables of a module. So a checkpoint opens without its trainer installed.
- an extension code, an out-of-band buffer or a persistent id in text: no step of this machine, refused.

Nothing takes longer, or more memory, than the limits below allow: a step that copies pays for what it copies, and
keys are values whose hashes can't be made to collide.
"""

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from inkwash.files import ModelFileError
from inkwash.weights.bytes.pickle_values import (
    Opaque,
    escaped,
    fill,
    in_pairs,
    integer,
    keys,
    latin1,
    quoted,
    text_integer,
    utf8,
)

MAX_BYTES = 64 << 20  # of one pickle; a Stable Diffusion checkpoint's has under a megabyte
MAX_STEPS = 500_000  # a checkpoint takes about 40 for each tensor, the tensor itself included
MAX_MARKS = 1_000  # containers open at once
MAX_NAME = 256  # characters of module and name
MODULE_TABLES = ("_parameters", "_buffers", "_modules")  # what makes up a torch.nn.Module
TENSOR_MODULES = {"torch._utils", "torch._tensor"}
# of the standard library, what training checkpoints refer to
HARMLESS = set("argparse collections copyreg datetime enum functools pathlib types typing".split())
CLASSES = set("bool bytes bytearray float int object str type".split())  # of builtins
REFUSED = (sys.stdlib_module_names | {"__builtin__", "commands", "nt", "posix"}) - HARMLESS
NONSENSE = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError, struct.error)


@dataclass(frozen=True, eq=False)
class Maker:
    """A function of this module, under a name that pickles call it by."""

    make: Callable[..., Any]  # (machine, *arguments)


class Machine:
    """Runs the pickles in `data`, one after another.

    `table` holds what names stand for: a Maker, or a value as it is; `persistent` gives what persistent ids do.
    """

    def __init__(
        self, data: bytes | mmap, table: Mapping[str, Any], persistent: Callable[[Any], Any]
    ) -> None:
        self.data, self.at, self.table, self.persistent = data, 0, table, persistent
        self.foreign: set[str] = set()  # names that became Opaque
        self.num_steps = 0

    def begin(self) -> None:
        self.end = min(len(self.data), self.at + MAX_BYTES)
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickle's value; another pickle may follow, with the steps that are left. Raises ModelFileError only."""
        self.begin()
        try:
            while (step := STEPS.get(self.take(1))) is not None:
                self.spend(1)
                step(self)
            if self.data[self.at - 1] == ord("."):
                return self.stack.pop()
        except ModelFileError:
            raise
        except NONSENSE as error:
            kind = type(error).__name__
            raise ModelFileError(f"its pickle makes no sense at byte {self.at} ({kind})") from error
        raise ModelFileError(f"its pickle has the step {self.data[self.at - 1]:#04x}, which is not covered")

    def spend(self, num: int) -> None:
        self.num_steps += num
        if self.num_steps > MAX_STEPS:
            raise ModelFileError(f"its pickle takes more than {MAX_STEPS:,} steps")

    def take(self, num: int) -> bytes:
        begin, self.at = self.at, self.at + num
        if not begin <= self.at <= self.end:
            raise ModelFileError(f"its pickle is cut short, or over {MAX_BYTES >> 20} MiB")
        return self.data[begin : self.at]

    def line(self) -> bytes:
        if (end := self.data.find(b"\n", self.at, self.end)) < 0:
            raise ModelFileError("its pickle is cut short")
        return self.take(end + 1 - self.at)[:-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def unmark(self) -> list[Any]:
        """The values above the last mark, taken off with it."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def find(self, module: Any, name: Any) -> Any:
        """The fixed table's entry, or an Opaque; never anything of Python's own."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise ModelFileError("its pickle asks for an object by no proper name")
        full = f"{module}.{name}"
        if full in self.table:
            return self.table[full]
        is_class = module in ("builtins", "__builtin__") and name in CLASSES
        if module.partition(".")[0] in REFUSED and not is_class:
            raise ModelFileError(f"it asks for {full!r}, which no weights need; nothing was run")
        if module in TENSOR_MODULES:
            raise ModelFileError(f"it holds a tensor made by {full!r}, which is not covered")
        self.spend(10)
        self.foreign.add(full)
        return Opaque(full)

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ModelFileError("its pickle calls something with no tuple")
        if isinstance(function, Opaque):
            return Opaque(function.name)
        if isinstance(function, Maker):
            return function.make(self, *arguments)
        raise ModelFileError(f"its pickle calls a value of type {type(function).__name__}")

    # steps that are more than one expression

    def mark(self) -> None:
        if len(self.marked) == MAX_MARKS:
            raise ModelFileError(f"its pickle nests more than {MAX_MARKS:,} containers")
        self.marked.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.unmark()

    def put(self, index: int) -> None:
        if not 0 <= index < MAX_STEPS:
            raise ModelFileError(f"its pickle's memo has no place {index}")
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        if (protocol := self.take(1)[0]) > 5:
            raise ModelFileError(f"its pickle has protocol {protocol}; 5 is the last one known")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.call(function, arguments))

    def new_with_keywords(self) -> None:
        keywords = self.stack.pop()
        if keywords != {} and not isinstance(self.stack[-2], Opaque):
            raise ModelFileError("its pickle makes a known object with keywords")
        self.reduce()

    def instance(self) -> None:
        found = self.find(self.line().decode(), self.line().decode())
        self.push(self.call(found, tuple(self.unmark())))

    def make_object(self) -> None:
        kind, *arguments = self.unmark()
        self.push(self.call(kind, tuple(arguments)))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.find(module, name))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque) and isinstance(state, dict):
            target.state = {name: state[name] for name in MODULE_TABLES if name in state}
        elif not isinstance(target, Opaque | dict):  # a dict's state is torch's _metadata of a state dict
            raise ModelFileError(f"its pickle gives a state to a value of type {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Opaque):
            fill(self.stack[-1], in_pairs(items))

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Opaque):
            raise ModelFileError(f"its pickle appends to a value of type {type(self.stack[-1]).__name__}")

    def add_items(self) -> None:
        items = self.unmark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(keys(items))
        elif not isinstance(self.stack[-1], Opaque):
            raise ModelFileError(f"its pickle adds to a value of type {type(self.stack[-1]).__name__}")


Step = Callable[[Machine], Any]


def constant(value: Any) -> Step:
    return lambda m: m.push(value)


def number(layout: str) -> Step:
    size = struct.calcsize(layout)
    return lambda m: m.push(struct.unpack(layout, m.take(size))[0])


def sized(layout: str, read: Callable[[bytes], Any]) -> Step:
    size = struct.calcsize(layout)
    return lambda m: m.push(read(m.take(struct.unpack(layout, m.take(size))[0])))


def lined(read: Callable[[bytes], Any]) -> Step:
    return lambda m: m.push(read(m.line()))


def last(num: int) -> Step:
    """Makes a tuple of the last `num` values."""
    return lambda m: m.push(tuple([m.stack.pop() for _ in range(num)][::-1]))


STEPS: dict[bytes, Step] = {
    b"\x80": Machine.protocol,
    b"\x95": lambda m: m.take(8),  # a frame's length, of use to who reads from a pipe
    b"(": Machine.mark,
    b"0": Machine.pop,
    b"1": Machine.unmark,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": constant(None),
    b"\x88": constant(True),
    b"\x89": constant(False),
    b"K": number("<B"),
    b"M": number("<H"),
    b"J": number("<i"),
    b"G": number(">d"),
    b"\x8a": sized("<B", integer),
    b"\x8b": sized("<i", integer),
    b"I": lined(text_integer),
    b"L": lined(text_integer),
    b"F": lined(float),
    b"X": sized("<I", utf8),
    b"\x8c": sized("<B", utf8),
    b"\x8d": sized("<Q", utf8),
    b"T": sized("<i", latin1),  # Python 2's strings
    b"U": sized("<B", latin1),
    b"S": lined(quoted),
    b"V": lined(escaped),
    b"B": sized("<I", bytes),
    b"C": sized("<B", bytes),
    b"\x8e": sized("<Q", bytes),
    b"\x96": sized("<Q", bytes),  # a bytearray
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": constant(()),
    b"\x8f": lambda m: m.push(set(m.spend(3) or ())),  # it is four times as large as a list
    b"d": lambda m: m.push(fill({}, in_pairs(m.unmark()))),
    b"l": lambda m: m.push(m.unmark()),
    b"t": lambda m: m.push(tuple(m.unmark())),
    b"\x85": last(1),
    b"\x86": last(2),
    b"\x87": last(3),
    b"\x91": lambda m: m.push(frozenset(keys(m.unmark()))),
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    b"u": lambda m: m.set_items(m.unmark()),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.unmark()),
    b"\x90": Machine.add_items,
    b"p": lambda m: m.put(int(text_integer(m.line()))),
    b"q": lambda m: m.put(m.take(1)[0]),
    b"r": lambda m: m.put(struct.unpack("<I", m.take(4))[0]),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.push(m.memo[text_integer(m.line())]),
    b"h": lambda m: m.push(m.memo[m.take(1)[0]]),
    b"j": lambda m: m.push(m.memo[struct.unpack("<I", m.take(4))[0]]),
    b"c": lambda m: m.push(m.find(m.line().decode(), m.line().decode())),
    b"\x93": Machine.stack_global,
    b"i": Machine.instance,
    b"o": Machine.make_object,
    b"R": Machine.reduce,
    b"\x81": Machine.reduce,
    b"\x92": Machine.new_with_keywords,
    b"b": Machine.build,
    b"Q": lambda m: m.push(m.persistent(m.stack.pop())),
}
