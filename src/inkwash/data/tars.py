"""Reading webdataset shards: tars whose neighbours `{key}.{ext}` make one sample."""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def read_samples(shards: Iterable[Path]) -> Iterator[dict[str, bytes]]:
    """Samples in order, each {"__key__": key, ext: bytes, ...}. The extension is all after the first dot."""
    for shard in shards:
        sample: dict[str, bytes] = {}
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ext = name.partition(".")
                key = f"{folder}/{stem}".lstrip("/").encode()
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                sample |= {"__key__": key, ext: content.read()}
        if sample:
            yield sample
