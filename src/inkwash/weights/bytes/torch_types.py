"""All that a torch file may make: plain containers and tensors, in one fixed table.

Every maker takes the machine first, to pay for what it copies, and then what the pickle gives it, of any type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.bytes.pickle_machine import Machine, Maker
from inkwash.weights.bytes.pickle_values import Opaque, fill, keys

MAX_DIMS = 64  # as torch has it
STEPS_OF_A_TENSOR = 10  # of the machine, by the time that making one takes


@dataclass(frozen=True)
class Storage:
    """Bytes that tensors are views of, and the dtype of their elements."""

    dtype: torch.dtype
    content: Tensor  # uint8


def make_dict(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    machine.spend(len(pairs))
    return fill({}, pairs)


def make_sequence(kind: Callable[[Any], Any]) -> Maker:
    def make(machine: Machine, values: Any = ()) -> Any:
        machine.spend(len(values))
        return kind(values)

    return Maker(make)


def make_bytes(machine: Machine, text: str, encoding: str) -> bytes:
    """Make bytes of the text that protocols before 3 write for them."""
    machine.spend(len(text) // 64)
    return text.encode({"latin1": "latin1"}[encoding])


def make_complex(machine: Machine, real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def make_default_dict(machine: Machine, factory: Any = None) -> dict[Any, Any]:
    return {}


def make_tensor(
    machine: Machine,
    source: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """A view of the storage, once all its elements are known to lie inside, and to be no more than that has."""
    if not isinstance(source, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ModelFileError("it holds a tensor without storage, size or stride")
    if len(size) != len(stride) or len(size) > MAX_DIMS:
        raise ModelFileError(f"it holds a tensor with {len(size)} sizes and {len(stride)} strides")
    if metadata:
        raise ModelFileError("it holds a conjugate or negative view, which is not covered")
    whole = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 2**62 for n in whole) or prod(n or 1 for n in size) >= 2**62:
        raise ModelFileError(
            "it holds a tensor whose size, stride or offset is negative, too large or no integer"
        )
    elements = source.content[: source.content.numel() // source.dtype.itemsize * source.dtype.itemsize]
    elements = elements.view(source.dtype)
    num, num_stored = prod(size), elements.numel()
    end = offset + (sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if num else 0)
    if end > num_stored or num > num_stored:
        raise ModelFileError(
            f"it holds a tensor of {num} elements that don't lie in its storage of {num_stored}"
        )
    machine.spend(STEPS_OF_A_TENSOR)
    return elements.as_strided(size, stride, offset)


def make_typed_tensor(
    machine: Machine,
    source: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: Any,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    """Rebuild a tensor of a dtype that has no storage class of its own."""
    if not isinstance(source, Storage) or not isinstance(dtype, torch.dtype):
        raise ModelFileError("it holds a tensor without storage or dtype")
    return make_tensor(machine, Storage(dtype, source.content), offset, size, stride, None, None, metadata)


def make_parameter(machine: Machine, tensor: Tensor, *flags: Any) -> Tensor:
    """The tensor itself: whether it takes gradients is its user's matter."""
    if not isinstance(tensor, Tensor):
        raise ModelFileError("it holds a parameter that is not a tensor")
    return tensor


def make_subclass(machine: Machine, function: Maker, kind: Opaque, arguments: Any, state: Any) -> Tensor:
    """A tensor that has attributes of its own; these are dropped."""
    if not isinstance(kind, Opaque) or kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise ModelFileError("it holds a tensor of a class that is not covered")
    return make_parameter(machine, machine.call(function, arguments))


def make_device(machine: Machine, kind: str, index: int | None = None) -> str:
    """The name alone: nothing here is put on a device."""
    if not isinstance(kind, str) or not isinstance(index, int | None) or len(kind) > 64:
        raise ModelFileError("it holds a device of no proper name")
    return kind if index is None else f"{kind}:{index}"


# plain containers, by the names that both generations of Python give them
PLAIN: dict[str, Any] = {
    f"{module}.{name}": made
    for module in ("builtins", "__builtin__")
    for name, made in {
        "dict": Maker(make_dict),
        "list": make_sequence(list),
        "tuple": make_sequence(tuple),
        "set": make_sequence(lambda values: set(keys(values))),
        "frozenset": make_sequence(lambda values: frozenset(keys(values))),
        "complex": Maker(make_complex),
    }.items()
} | {
    "collections.OrderedDict": Maker(make_dict),
    "collections.defaultdict": Maker(make_default_dict),
    "_codecs.encode": Maker(make_bytes),
}

STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
OTHER_DTYPES = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]
UNTYPED = ("torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage")
# all that a torch file may make; a storage's class stands for the dtype of its elements
TABLE: dict[str, Any] = (
    PLAIN
    | {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()}
    | {str(dtype): dtype for dtype in [*STORAGES.values(), *OTHER_DTYPES]}
    | {name: torch.uint8 for name in UNTYPED}
    | {
        "torch.Size": PLAIN["builtins.tuple"],
        "torch.device": Maker(make_device),
        "torch._utils._rebuild_tensor": Maker(make_tensor),
        "torch._utils._rebuild_tensor_v2": Maker(make_tensor),
        "torch._utils._rebuild_tensor_v3": Maker(make_typed_tensor),
        "torch._utils._rebuild_parameter": Maker(make_parameter),
        "torch._utils._rebuild_parameter_with_state": Maker(make_parameter),
        "torch._tensor._rebuild_from_type_v2": Maker(make_subclass),
    }
)
