"""Any file of tensors, opened by what it contains: safetensors, what `torch.save` wrote in any year, ncnn's or Keras's.

Nothing in a file is run, whatever it is called; all sizes are checked before a tensor is made. The file stays mapped
as long as one of its tensors lives: a change of a tensor doesn't reach it, but who shortens it meanwhile ends the
process. Write a new file and rename it instead.
"""

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from inkwash.files import ModelFileError, atomic
from inkwash.weights.bytes import hdf5
from inkwash.weights.bytes.ncnn import MAGIC, read_ncnn
from inkwash.weights.bytes.torch_file import MAX_TENSORS, read_archive, read_stream, tabulate, view
from inkwash.weights.bytes.torch_types import MAX_DIMS

# files that are open, as long as one of their tensors lives, and where in memory they begin
MAPPED: "WeakKeyDictionary[mmap.mmap, int]" = WeakKeyDictionary()
LOCK = Lock()  # of them: one thread opens a file while another one releases a tensor
MAX_HEADER = 16 << 20  # bytes of a safetensors header
MAX_MARKS = 1_000_000  # brackets and commas in it, before it is taken for a bomb
MAX_MESSAGE = 500  # characters: names in it are the file's
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SMALL = 1 << 16  # bytes of a tensor whose memory is not worth a system call
KINDS = {  # of files that are taken for models, by their beginning
    b"version https://git-lfs": "a pointer of Git LFS, without the file that it points to",
    b"<": "a web page or XML",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"GGUF": "in the GGUF format, which is not covered",
    b"\x89PNG": "a picture",
}


@dataclass(frozen=True)
class TensorFile:
    """A file's contents.

    `tensors` are views of the mapped file wherever it is laid out for that; nested names are joined by dots.
    `metadata` are a safetensors file's texts, or a torch file's plain values: those beside the tensors, and
    - "dropped": names that are left out: of optimizers, and, beside a state_dict, of all that hold tensors
    - "foreign": names of Python objects that the file asks for, and that were neither looked up nor called
    """

    path: Path
    format: str  # safetensors, torch, torch legacy, ncnn or hdf5
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_tensors(path: Path) -> TensorFile:
    """Open a file of tensors. Raises ModelFileError, in one line that names the file and its first problem."""
    try:
        data = mapped(path)
        if data[8:9] == b"{":
            return TensorFile(path, "safetensors", *read_safetensors(data))
        if data[:4] == b"PK\3\4":
            return TensorFile(path, "torch", *tabulate(read_archive(data)))
        if data[:1] == b"\x80":
            return TensorFile(path, "torch legacy", *tabulate(read_stream(data)))
        if data[: len(MAGIC)] == MAGIC:
            return TensorFile(path, "ncnn", *read_ncnn(data, mapped(path.with_suffix(".bin"))))
        if data[: len(hdf5.MAGIC)] == hdf5.MAGIC:
            return TensorFile(path, "hdf5", hdf5.read_hdf5(data), {})
        if path.suffix == ".bin" and path.with_suffix(".param").is_file():
            return replace(read_tensors(path.with_suffix(".param")), path=path)
        raise ModelFileError(f"it is {kind_of(data)}")
    except ModelFileError as error:
        raise ModelFileError(f"{path} can't be read: {str(error)[:MAX_MESSAGE]}") from error


def mapped(path: Path) -> mmap.mmap:
    """The file's bytes, copied where and when they are written to."""
    try:
        if not path.is_file():  # a pipe or a device would block, or never end
            raise ModelFileError("there is no such file")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            begin = torch.frombuffer(data, dtype=torch.uint8, count=1).data_ptr()
            with LOCK:
                MAPPED[data] = begin
            return data
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:  # of an empty file, too
        raise ModelFileError(str(error)) from error


def release(tensor: Tensor) -> None:
    """Give the memory of a tensor of a mapped file back; nothing for any other one. Who reads it again reads the file.

    What was written to it is lost. For tensors that have been copied elsewhere and that nobody changed. Small ones stay.
    """
    if tensor.nbytes < SMALL:
        return
    begin = tensor.data_ptr()
    with LOCK:
        opened = list(MAPPED.items())
    for data, base in opened:
        if base <= begin < base + len(data):
            first, end = -(-(begin - base) // mmap.PAGESIZE), (begin - base + tensor.nbytes) // mmap.PAGESIZE
            if first < end and hasattr(mmap, "MADV_DONTNEED"):  # whole pages of its own; not on Windows
                data.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)


def kind_of(data: mmap.mmap) -> str:
    """A description of a file in a format that is not read."""
    if data[257:262] == b"ustar":
        return "a tar archive, as torch wrote them before 0.1.10; save it again with a later one"
    for beginning, kind in KINDS.items():
        if data[: len(beginning)] == beginning:
            return kind
    return "neither safetensors nor a file of torch's"


def read_safetensors(data: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; the header is wholly checked before a tensor is made."""
    header, begin = read_header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise ModelFileError("its __metadata__ has values that are not strings")
    if len(header) > MAX_TENSORS:
        raise ModelFileError(f"it has {len(header):,} tensors; at most {MAX_TENSORS:,} are read")
    infos = {name: checked(name, info) for name, info in header.items()}
    end = 0
    for name, (_, _, offset, size) in sorted(infos.items(), key=lambda item: item[1][2:]):
        if offset != end:
            raise ModelFileError(
                f"its tensor {name!r} {'overlaps' if offset < end else 'is not next to'} another one"
            )
        end = offset + size
    if begin + end != len(data):
        raise ModelFileError(f"its tensors take {end:,} bytes, the file has {len(data) - begin:,} for them")
    tensors = {}
    for name, (dtype, shape, offset, size) in infos.items():
        tensors[name] = view(data, begin + offset, size, dtype.itemsize).view(dtype).view(shape)
    return tensors, metadata


def read_header(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and the offset of the bytes that follow it."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise ModelFileError(f"its header has {size:,} bytes; at most {MAX_HEADER:,} are read")
    if 8 + size > len(data):
        raise ModelFileError("it ends within its header")
    text = data[8 : 8 + size]
    if sum(text.count(mark) for mark in (b"{", b"[", b",")) > MAX_MARKS:
        raise ModelFileError(f"its header has more than {MAX_MARKS:,} values")
    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except ModelFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"its header is not JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise ModelFileError("its header is not a JSON object")
    return header, 8 + size


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        name.encode()  # a lone surrogate raises here, not where the name is printed
        if name in content:
            raise ModelFileError(f"its header has {name[:200]!r} twice")
        content[name] = value
    return content


def checked(name: str, info: Any) -> tuple[torch.dtype, list[int], int, int]:
    """A tensor's dtype, shape, offset and size, in bytes."""
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"its tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelFileError(
            f"its tensor {name!r} has the dtype {str(dtype)[:80]!r}; one of {', '.join(DTYPES)}"
        )
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > MAX_DIMS or not all(is_size(n) for n in numbers):
            raise ModelFileError(f"its tensor {name!r} has a shape or offsets that are not sizes")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFileError(f"its tensor {name!r} has offsets that are not a range")
    size = offsets[1] - offsets[0]
    if prod(n or 1 for n in shape) >= 2**62 or prod(shape) * DTYPES[dtype].itemsize != size:
        raise ModelFileError(f"its tensor {name!r} of {size:,} bytes has a shape of another size")
    return DTYPES[dtype], shape, offsets[0], size


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def header_of(
    infos: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """The beginning of a safetensors file of tensors of these dtypes and shapes, and the order of their bytes in it."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # wide dtypes first, so that each tensor is aligned to its own
    order = sorted(infos, key=lambda name: (-infos[name][0].itemsize, name))
    end = 0
    for name in order:
        dtype, shape = infos[name]
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's values as a file has them."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor after the other, so that none has to be in memory but the one written."""
    header, order = header_of({name: (t.dtype, t.shape) for name, t in tensors.items()}, metadata)
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(header)
        for name in order:
            file.write(bytes_of(tensors[name]))
