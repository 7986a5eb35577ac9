"""Large files that are read back while they are written, past the system's page cache where the file system takes that.

Pages of the cache cost more time than the disk: each is taken, filled by a copy and written back later. What is read back
comes from the disk this way, too, and not from the cache.
"""

import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np

from inkwash.files import ModelFileError

CHUNK = 8 << 20  # bytes that are written at once, a multiple of any disk's blocks
THREADS = 2  # one chunk is read back while the next one is written
DIRECT = getattr(os, "O_DIRECT", 0)  # not on every system


class CheckedFile:
    """An append-only file.

    `write` and `close` raise OSError of the disk, and ModelFileError for bytes that differ.
    """

    def __init__(self, path: Path):
        path.touch()
        self.path, self.direct = path, takes_direct(path)
        # for a chunk, and for what is read back; they begin at pages, as direct writing wants
        self.rooms = deque(memoryview(mmap.mmap(-1, 2 * CHUNK)) for _ in range(THREADS + 1))
        self.begin = self.filled = 0
        self.pool = ThreadPoolExecutor(THREADS)
        self.waiting: deque[tuple[Future[None], memoryview]] = deque()

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        done = 0
        while done < len(data):
            if not self.rooms:
                self.wait()
            num = min(CHUNK - self.filled, len(data) - done)
            self.rooms[0][self.filled : self.filled + num] = data[done : done + num]
            self.filled, done = self.filled + num, done + num
            if self.filled == CHUNK:
                self.send()

    def send(self) -> None:
        """Have what is gathered written and read back."""
        room = self.rooms.popleft()
        data, found = room[: self.filled], room[CHUNK : CHUNK + self.filled]
        job = self.pool.submit(write_and_compare, self.path, self.begin, data, found, self.direct)
        self.waiting.append((job, room))
        self.begin, self.filled = self.begin + self.filled, 0

    def wait(self) -> None:
        job, room = self.waiting.popleft()
        job.result()
        self.rooms.append(room)

    def close(self) -> None:
        """Write the rest, and wait for all."""
        if self.filled:
            self.send()
        while self.waiting:
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.pool.shutdown(cancel_futures=True)


def opened(path: Path, direct: bool) -> FileIO:
    return open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, flags | DIRECT * direct))


def takes_direct(path: Path) -> bool:
    """True where the path's file system reads and writes past the cache."""
    try:
        with opened(path, direct=True):
            return bool(DIRECT)
    except OSError:
        return False


def store(path: Path, begin: int, data: memoryview, direct: bool) -> None:
    with opened(path, direct) as file:
        file.seek(begin)
        while data:
            data = data[file.write(data) :]


def write_and_compare(path: Path, begin: int, data: memoryview, found: memoryview, direct: bool) -> None:
    """Write bytes and read them into `found`. Raises ModelFileError where they differ."""
    direct &= len(data) == CHUNK  # the end of the file is no whole block
    store(path, begin, data, direct)
    got = 0
    with opened(path, direct) as file:
        file.seek(begin)
        while num := file.readinto(found[got:]):
            got += num
    if got < len(data) or not equal(data, found):
        end = begin + len(data)
        raise ModelFileError(f"bytes {begin} to {end} are not as they were written; the disk may be at fault")


def equal(a: memoryview, b: memoryview) -> bool:
    """Return True if bytes of one length are equal; eight at a time take a third of the time."""
    whole = len(a) // 8 * 8
    words, others = (np.frombuffer(each[:whole], np.uint64) for each in (a, b))
    return np.array_equal(words, others) and a[whole:] == b[whole:]
