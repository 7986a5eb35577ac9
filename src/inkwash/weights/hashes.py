"""Hashes that name model files, as other programs compute them."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def payload_hash(path: Path) -> str:
    """The sha256 of a safetensors file without its header, which metadata don't change, and of other files whole."""
    found = path.stat()
    return _payload_hash(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _payload_hash(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(8 + int.from_bytes(start[:8], "little") if start[8:] == b"{" else 0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(files: Iterable[Path]) -> str:
    """The sha256, in hex, of a file, or of several files' own ones."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
