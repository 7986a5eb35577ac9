"""Merged models to files: one tensor in memory at a time, checked, and named only when it is whole."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from inkwash.adapters.low_rank import Adapter
from inkwash.adapters.writing import adapter_tensors
from inkwash.files import ModelFileError, atomic, check_writable
from inkwash.merge.adapters import AdapterValue
from inkwash.merge.blocks import component_of
from inkwash.merge.expression import Value
from inkwash.merge.sources import Info, Source
from inkwash.weights.bytes.tensor_file import bytes_of, header_of, mapped, read_safetensors, release
from inkwash.weights.models.convert import convert

OnTensor = Callable[[int, int], None]  # told how many tensors are written, and of how many


def write(
    value: Value,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Compute a merge into a safetensors file. dtype: of the networks, by default as the leading model has them.

    Raises ModelFileError, and writes nothing, where `path` is one of the models, where the disk has no room, where a value
    is not finite or does not fit the dtype, and where what is read back is not what was written.
    """
    infos = {name: written_as(name, info, dtype) for name, info in value.infos.items()}

    def made(name: str) -> Tensor:
        with torch.inference_mode():
            return finite(name, value.tensor(name), infos[name].dtype)

    save(path, infos, made, metadata or {}, tuple(value.sources()), on_tensor)


def write_adapter(
    value: AdapterValue,
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
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
    save(path, infos, tensors.__getitem__, dict(metadata or {}) | said, sources)


def save(
    path: Path,
    infos: Mapping[str, Info],
    made: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    sources: Iterable[Source],
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Write what is made of each name, compare what is on the disk, and give it its name."""
    header, order = header_of(infos, metadata)
    check_target(sources, path, len(header) + sum(prod(i.shape) * i.dtype.itemsize for i in infos.values()))
    sums = {}
    with atomic(path) as partial:
        with partial.open("wb") as file:
            file.write(header)
            for done, (name, tensor) in enumerate(ahead(made, order), 1):
                file.write(bytes_of(tensor))
                sums[name] = checksum(tensor)
                on_tensor(done, len(order))
        compare(partial, infos, sums)


def write_as_folder(
    value: Value,
    folder: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
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
    if size > (free := shutil.disk_usage(path.resolve().parent).free):
        raise ModelFileError(f"{path} takes {size / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free")


def ahead(make: Callable[[str], Tensor], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Names with what is made of them, the next one being made while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for name in names:
            following = (name, pool.submit(make, name))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield waiting[0], waiting[1].result()


def finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype. Raises ModelFileError for values that are not finite in it."""
    made = tensor.to(dtype)
    if made.is_floating_point() and not torch.isfinite(made.float() if dtype.itemsize == 1 else made).all():
        if tensor.isfinite().all():
            largest, what = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
            raise ModelFileError(
                f"{name} reaches {largest:.4g}, which {what} does not hold; write bf16 or fp32"
            )
        raise ModelFileError(
            f"{name} is not finite: a model holds NaN or infinity there, or the merge makes it"
        )
    return made


def checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes, taken as words of 64 bits."""
    data = torch.frombuffer(bytes_of(tensor), dtype=torch.uint8) if tensor.numel() else tensor.new_empty(0)
    whole = data.numel() // 8 * 8
    words = (
        data[:whole].view(torch.int64)
        if data.storage_offset() % 8 == 0
        else data[:whole].clone().view(torch.int64)
    )
    return int(words.sum()) ^ int(data[whole:].sum())


def compare(path: Path, infos: Mapping[str, Info], sums: Mapping[str, int]) -> None:
    """Raises ModelFileError where a file does not hold what was written to it."""
    tensors, _ = read_safetensors(mapped(path))
    for name, info in infos.items():
        found = tensors.get(name)
        if found is None or (found.dtype, tuple(found.shape)) != info or checksum(found) != sums[name]:
            raise ModelFileError(f"{name} was not written as it was computed; the disk may be at fault")
        release(found)
