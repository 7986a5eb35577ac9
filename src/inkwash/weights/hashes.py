"""Hashes that name model files, as other programs compute them.

Those of large files are kept in the user's cache folder: hashing one takes as long as copying it.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from inkwash.files import user_cache, write_text

LARGE = 64 << 20  # bytes, from which on a file's hash is kept
SETTLED = (
    2.0  # seconds without a change; file systems may not see a second change within one tick of their clock
)


def payload_hash(path: Path) -> str:
    """The sha256 of a safetensors file without its header, which metadata don't change, and of other files whole."""
    return _payload_hash(path, *state(path.stat()))


@lru_cache(maxsize=256)
def _payload_hash(path: Path, *_: int) -> str:
    return file_hash(path, payload=True)


def hash_of(files: Iterable[Path]) -> str:
    """The sha256, in hex, of a file, or of several files' own ones."""
    found = [file_hash(path) for path in files]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256(b"".join(map(bytes.fromhex, found))).hexdigest()


def file_hash(path: Path, payload: bool = False) -> str:
    """The sha256, in hex, of a file, or of its payload alone; a large file that has not changed is not read again."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size < LARGE:
            return digest(file, payload)
        place = f"{path.resolve()}{' payload' * payload}"
        note = user_cache() / "hashes" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(note.read_text())
            if known["state"] == list(state(before)):
                return str(known["sha256"])
        settled = max(before.st_mtime, before.st_ctime) < time.time() - SETTLED
        found = digest(file, payload)
        if settled and state(os.fstat(file.fileno())) == state(before):
            with suppress(OSError):  # a cache that can't be written costs time alone
                write_text(note, json.dumps({"state": state(before), "sha256": found}))
    return found


def digest(file: BufferedReader, payload: bool) -> str:
    """The sha256, in hex, of an open file, or of its payload alone."""
    if payload:
        start = file.read(9)
        file.seek(8 + int.from_bytes(start[:8], "little") if start[8:] == b"{" else 0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def state(found: os.stat_result) -> tuple[int, ...]:
    """Numbers that differ once a file is changed or replaced."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
