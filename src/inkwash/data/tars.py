"""Webdataset shards: tars whose neighbours `{key}.{ext}` make one sample."""

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inkwash.data.examples import Bytes


@contextmanager
def naming(shard: Path) -> Iterator[None]:
    """Have a tarfile.TarError name the shard."""
    try:
        yield
    except tarfile.TarError as error:
        raise type(error)(f"{shard} is not a whole tar: {error}") from error


def read_samples(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Samples in order, each {"__key__": key, ext: bytes, ...}. The extension is all after the first dot."""
    for key, parts in samples(shards):
        yield {"__key__": key.encode()} | {ext: part.read() for ext, part in parts.items()}


def find_samples(shards: Iterable[Path]) -> Iterator[dict[str, Bytes]]:
    """The samples in order, by extension: where their bytes lie, none of which is read."""
    for _, parts in samples(shards):
        yield parts


def samples(shards: Iterable[Path]) -> Iterator[tuple[str, dict[str, Bytes]]]:
    """The key and parts of each sample. Raises tarfile.TarError for a file that is not a tar, or is cut, which names it."""
    for shard in shards:
        parts: dict[str, Bytes] = {}
        last = None
        with naming(shard), tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ext = name.partition(".")
                key = f"{folder}/{stem}".lstrip("/")
                if last is not None and key != last:
                    yield last, parts
                    parts = {}
                last = key
                parts[ext] = Bytes(shard, member.offset_data, member.size, member.name)
        if last is not None:
            yield last, parts
