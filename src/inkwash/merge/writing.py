"""Merged models to files: a few tensors in memory at a time, checked, and named only when it is whole."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from inkwash.adapters.low_rank import Adapter
from inkwash.adapters.writing import adapter_tensors
from inkwash.files import ModelFileError, atomic, check_writable
from inkwash.merge.adapters import AdapterValue
from inkwash.merge.blocks import component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source
from inkwash.weights.bytes.tensor_file import bytes_of, header_of, mapped, read_safetensors
from inkwash.weights.models.convert import convert

COMPUTING = 2  # threads
OnTensor = Callable[[int, int], None]  # told how many tensors are written, and of how many


@dataclass(frozen=True)
class Late:
    """Metadata that are known at the end. draft: others that are no shorter."""

    draft: Mapping[str, str]
    final: Callable[[], Mapping[str, str]]


Metadata = Mapping[str, str] | Late


def write(
    value: Value,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Metadata = MappingProxyType({}),
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Compute a merge into a safetensors file. dtype: of the networks, by default as the leading model has them.

    Raises ModelFileError, and writes nothing, where `path` is one of the models, where the disk has no room, where a value
    is not finite or does not fit the dtype, and where what is read back is not what was written.
    """
    infos = {name: written_as(name, info, dtype) for name, info in value.infos.items()}

    def made(name: str) -> Tensor:
        with torch.inference_mode():
            return filled(name, value.blocks(name, infos[name].dtype), infos[name])

    save(path, infos, made, metadata, tuple(value.sources()), on_tensor)


def write_adapter(
    value: AdapterValue,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Metadata = MappingProxyType({}),
    on_tensor: OnTensor = lambda done, total: None,
    names: str = "kohya",
) -> None:
    """The same of an adapter, of which one layer at a time is computed and the result is in memory.

    dtype: by default as the first file has it. names: see `adapter_tensors`.
    """
    sources = tuple(value.sources())
    check_target(sources, path)
    dtype = dtype or next(
        t.dtype for t in sources[0].tensors.values() if t.is_floating_point() and t.ndim > 1
    )
    changes = {}
    with torch.inference_mode():
        for done, target in enumerate(value.targets, 1):
            if (change := value.change(target)) is not None:
                changes[target] = change.to(dtype)
            on_tensor(done, len(value.targets))
        if not changes:
            raise ModelFileError("the adapter would change nothing")
        made = Adapter(changes, value.embeddings)
        try:
            tensors, said = adapter_tensors(made, value.modules.parts, names, dtype)
        except ValueError as error:
            raise ModelFileError(str(error)) from error
    infos = {name: Info(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    save(path, infos, tensors.__getitem__, metadata, sources, said=said)


def save(
    path: Path,
    infos: Mapping[str, Info],
    made: Callable[[str], Tensor],
    metadata: Metadata,
    sources: Iterable[Source],
    on_tensor: OnTensor = lambda done, total: None,
    said: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write what is made of each name, compare what is written, and give it its name. said: further metadata.

    Two threads compute, one writes, one reads what is written, and one has the disk keep up. So the tensors of five names
    at most are in memory.
    """
    late = metadata if isinstance(metadata, Late) else Late(metadata, lambda: metadata)
    header, order = header_of(infos, {**late.draft, **said})
    check_target(sources, path, len(header) + size_of(infos.values()))
    with atomic(path) as partial, partial.open("wb") as file, Checking(partial) as checking:
        file.write(header)
        for done, (name, tensor, total) in enumerate(ahead(made, order), 1):
            begin = file.tell()
            file.write(bytes_of(tensor))
            file.flush()
            checking.add(name, begin, tensor.nbytes, total)
            on_tensor(done, len(order))
        checking.finish()
        file.seek(0)
        file.write(widened(header_of(infos, {**late.final(), **said})[0], len(header)))
        file.flush()
        compare(partial, infos)


def widened(header: bytes, size: int) -> bytes:
    """A safetensors header with blanks behind it."""
    return (size - 8).to_bytes(8, "little") + header[8:].ljust(size - 8)


def write_as_folder(
    value: Value,
    folder: Path,
    dtype: torch.dtype | None = None,
    metadata: Metadata = MappingProxyType({}),
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """The same as a folder in the diffusers layout, by way of a single file beside it that is removed. See `write`."""
    if folder.is_file():
        raise ModelFileError(f"{folder} is a file; a folder is asked for")
    for source in value.sources():
        if folder.exists() and folder.samefile(source.path):
            raise ModelFileError(
                f"{folder} is one of the models that are merged; give another place to write to"
            )
    infos = [written_as(name, info, dtype) for name, info in value.infos.items()]
    check_room(folder, 2 * size_of(infos))
    with TemporaryDirectory(dir=folder.resolve().parent, prefix=".inkwash-merge-") as temporary:
        single = Path(temporary) / "merged.safetensors"
        write(value, single, dtype, metadata, on_tensor)
        convert(single, folder, "diffusers")


def written_as(name: str, info: Info, dtype: torch.dtype | None) -> Info:
    if dtype is None or not info.dtype.is_floating_point or not component_of(name):
        return info
    return info._replace(dtype=dtype)


def check_target(sources: Iterable[Source], path: Path, size: int = 0) -> None:
    """Raises ModelFileError for a path that is one of the sources', or on a disk with less room than `size` bytes."""
    for source in sources:
        if path.exists() and any(path.samefile(each) for each in (source.path, *source.files)):
            raise ModelFileError(
                f"{path} is one of the models that are merged; give another place to write to"
            )
    check_writable(path)
    check_room(path, size)


def size_of(infos: Iterable[Info]) -> int:
    """Bytes of tensors."""
    return sum(prod(info.shape) * info.dtype.itemsize for info in infos)


def check_room(path: Path, size: int) -> None:
    """Raises ModelFileError where `path` is on a disk with less room than `size` bytes."""
    if size > (free := shutil.disk_usage(path.resolve().parent).free):
        raise ModelFileError(f"{path} takes {size / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free")


def ahead(make: Callable[[str], Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor, int]]:
    """Names with what is made of them and its checksum, the next ones being made while the last one is used."""

    def made(name: str) -> tuple[str, Tensor, int]:
        tensor = make(name)
        return name, tensor, checksum(bytes_of(tensor))

    with ThreadPoolExecutor(COMPUTING) as pool:
        waiting: deque[Future[tuple[str, Tensor, int]]] = deque()
        try:
            for name in names:
                waiting.append(pool.submit(made, name))
                if len(waiting) > COMPUTING:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Checking:
    """Reads what is written to a file, while more is written, and has the disk keep up with it.

    What is wrong is raised by `add` and `finish`: ModelFileError for bytes that differ, OSError of the disk.
    """

    def __init__(self, path: Path):
        self.file = path.open("r+b", buffering=0)
        self.reading, self.flushing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()
        self.flushed = self.flushing.submit(int)
        self.buffer = bytearray()

    def add(self, name: str, begin: int, size: int, total: int) -> None:
        """Have the bytes of a tensor compared with its checksum."""
        self.waiting.append(self.reading.submit(self.check, name, begin, size, total))
        while len(self.waiting) > COMPUTING:
            self.waiting.popleft().result()
        if self.flushed.done():
            self.flushed.result()  # the system says once what went wrong with the disk
            self.flushed = self.flushing.submit(os.fsync, self.file.fileno())

    def check(self, name: str, begin: int, size: int, total: int) -> None:
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        self.file.seek(begin)
        data, got = memoryview(self.buffer)[:size], 0
        while got < size and (num := self.file.readinto(data[got:])):
            got += num
        if got < size or checksum(data) != total:
            raise ModelFileError(f"{name} was not written as it was computed; the disk may be at fault")

    def finish(self) -> None:
        """Wait for all. Raises what is found."""
        while self.waiting:
            self.waiting.popleft().result()
        self.flushed.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.shutdown(cancel_futures=True)
        self.flushing.shutdown(cancel_futures=True)
        self.file.close()


def filled(name: str, blocks: Iterable[Tensor], info: Info) -> Tensor:
    """A tensor of blocks. Raises ModelFileError for values that are not finite in its dtype."""
    made, at = torch.empty(info.shape, dtype=info.dtype), 0
    flat = made.flatten() if made.ndim else made.reshape(1)
    for block in blocks:
        part = flat[at : at + len(block)]
        part.copy_(block)
        at += len(block)
        check_finite(name, block, part)
    return made


def check_finite(name: str, block: Tensor, part: Tensor) -> None:
    """Raises ModelFileError where a block is not finite, or was not as it is kept."""
    if not part.is_floating_point() or not part.numel():
        return
    # one pass that makes nothing, and hands on a NaN; eight-bit floats have no order of their own
    extremes = torch.stack(torch.aminmax(part if part.dtype.itemsize > 1 else part.float()))
    if extremes.isfinite().all():
        return
    if block.isfinite().all():
        largest, what = float(block.abs().max()), str(part.dtype).removeprefix("torch.")
        raise ModelFileError(f"{name} reaches {largest:.4g}, which {what} does not hold; write bf16 or fp32")
    raise ModelFileError(f"{name} is not finite: a model holds NaN or infinity there, or the merge makes it")


def checksum(data: memoryview) -> int:
    """The sum of bytes, taken as words of 64 bits."""
    content, whole = np.asarray(data, np.uint8), len(data) // 8 * 8
    with np.errstate(over="ignore"):
        return int(content[:whole].view(np.int64).sum()) ^ int(content[whole:].sum())


def compare(path: Path, infos: Mapping[str, Info]) -> None:
    """Raises ModelFileError where a file does not say that it has the tensors that were written to it."""
    tensors, _ = read_safetensors(mapped(path))
    for name, info in infos.items():
        if name not in tensors or (tensors[name].dtype, tuple(tensors[name].shape)) != info:
            raise ModelFileError(f"{name} was not written as it was computed; the disk may be at fault")
