"""Merged models to files: a few tensors in memory at a time, checked, and named only when it is whole."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch
from torch import Tensor

from inkwash.adapters.low_rank import Adapter
from inkwash.adapters.writing import adapter_tensors
from inkwash.files import ModelFileError, atomic, check_writable
from inkwash.merge.adapters import AdapterValue
from inkwash.merge.blocks import component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source
from inkwash.weights.bytes.checked_file import CheckedFile
from inkwash.weights.bytes.tensor_file import bytes_of, header_of, mapped, read_safetensors
from inkwash.weights.models.convert import convert

COMPUTING = 2  # threads
OnTensor = Callable[[int, int], None]  # called with the number of tensors written so far, and of all
Make = Callable[[str, Tensor], Tensor]  # a tensor by its name; it may lie in the bytes given


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

    def made(name: str, room: Tensor) -> Tensor:
        with torch.inference_mode():
            return filled(name, value.blocks(name, infos[name].dtype), infos[name], room)

    save(path, infos, made, metadata, tuple(value.sources()), on_tensor)


def write_adapter(
    value: AdapterValue,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Metadata = MappingProxyType({}),
    on_tensor: OnTensor = lambda done, total: None,
    names: str = "kohya",
) -> None:
    """Compute an adapter into a safetensors file, one layer at a time; the result is in memory.

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
    save(path, infos, lambda name, room: tensors[name], metadata, sources, said=said)


def save(
    path: Path,
    infos: Mapping[str, Info],
    made: Make,
    metadata: Metadata,
    sources: Iterable[Source],
    on_tensor: OnTensor = lambda done, total: None,
    said: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the tensors, compare them with what the disk holds, and give the file its name. said: further metadata.

    Two threads compute, and two write and compare. So the tensors of four names at most are in memory.
    """
    late = metadata if isinstance(metadata, Late) else Late(metadata, lambda: metadata)
    header, order = header_of(infos, {**late.draft, **said})
    check_target(sources, path, len(header) + size_of(infos.values()))
    largest = max((size_of([info]) for info in infos.values()), default=0)
    with atomic(path) as partial:
        with CheckedFile(partial) as file:
            file.write(memoryview(header))
            for done, tensor in enumerate(ahead(made, order, largest), 1):
                file.write(bytes_of(tensor))
                on_tensor(done, len(order))
        with partial.open("r+b") as start:
            start.write(widened(header_of(infos, {**late.final(), **said})[0], len(header)))
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
    """Compute a merge into a folder in the diffusers layout, by way of a single file beside it. See `write`."""
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
    """Check that a path is none of the sources' and its disk has room for `size` bytes; raise ModelFileError otherwise."""
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
    """Check that the disk of `path` has room for `size` bytes; raise ModelFileError otherwise."""
    if size > (free := shutil.disk_usage(path.resolve().parent).free):
        raise ModelFileError(f"{path} takes {size / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free")


def ahead(make: Make, names: Iterable[str], largest: int) -> Iterator[Tensor]:
    """The tensors of these names in turn; the next ones are computed while the last one is used.

    largest: bytes of the largest tensor. They lie in memory that is used again: fresh pages cost more than the arithmetic.
    """
    rooms = deque(torch.empty(largest, dtype=torch.uint8) for _ in range(COMPUTING + 2))
    share = max(1, torch.get_num_threads() // COMPUTING)

    with ThreadPoolExecutor(COMPUTING, initializer=lambda: torch.set_num_threads(share)) as pool:
        waiting: deque[tuple[Future[Tensor], Tensor]] = deque()

        def used() -> Iterator[Tensor]:
            future, room = waiting.popleft()
            yield future.result()
            rooms.append(room)

        try:
            for name in names:
                if not rooms:
                    yield from used()
                room = rooms.popleft()
                waiting.append((pool.submit(make, name, room), room))
            while waiting:
                yield from used()
        finally:
            pool.shutdown(cancel_futures=True)


def filled(name: str, blocks: Iterable[Tensor], info: Info, room: Tensor | None = None) -> Tensor:
    """A tensor of blocks, in the bytes of `room` or in new ones.

    Raises ModelFileError for values that are not finite in its dtype.
    """
    size = size_of([info])
    room = torch.empty(size, dtype=torch.uint8) if room is None else room[:size]
    flat, at = room.view(info.dtype), 0
    for block in blocks:
        part = flat[at : at + len(block)]
        part.copy_(block)
        at += len(block)
        check_finite(name, block, part)
    return flat.view(info.shape)


def check_finite(name: str, block: Tensor, part: Tensor) -> None:
    """Check that a block is finite as it is kept; raise ModelFileError otherwise."""
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


def compare(path: Path, infos: Mapping[str, Info]) -> None:
    """Check that a file's header names the tensors that were written; raise ModelFileError otherwise."""
    tensors, _ = read_safetensors(mapped(path))
    for name, info in infos.items():
        if name not in tensors or (tensors[name].dtype, tuple(tensors[name].shape)) != info:
            raise ModelFileError(f"{name} was not written as it was computed; the disk may be at fault")
