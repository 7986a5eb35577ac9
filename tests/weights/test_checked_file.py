"""Files that are read back while they are written."""

import errno
import mmap
import os
from pathlib import Path

import pytest

from inkwash.files import ModelFileError
from inkwash.weights.bytes import checked_file
from inkwash.weights.bytes.checked_file import CheckedFile

CHUNK = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_file, "CHUNK", CHUNK)


def flipped(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the disk change a bit of one chunk."""
    true = checked_file.store

    def store(path: Path, begin: int, data: memoryview, direct: bool) -> None:
        true(path, begin, data, direct)
        if begin == number * CHUNK:
            with path.open("r+b") as file:
                file.seek(begin)
                file.write(bytes([data[0] ^ 1]))

    monkeypatch.setattr(checked_file, "store", store)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 5])
def test_the_file_holds_what_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(checked_file, "takes_direct", lambda path: False)
    data, path = os.urandom(size), tmp_path / "file"
    with CheckedFile(path) as file:
        for begin in range(0, size, 777):
            file.write(memoryview(data)[begin : begin + 777])
    assert path.read_bytes() == data
    with CheckedFile(path) as file:
        file.write(memoryview(data))
    assert path.read_bytes() == data


@pytest.mark.parametrize("number", [0, 3, 9])
def test_bytes_that_the_disk_changes_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flipped(monkeypatch, number)
    begin = number * CHUNK
    said = f"bytes {begin} to {min(begin + CHUNK, 9 * CHUNK + 5)} are not as they were written"
    with pytest.raises(ModelFileError, match=said), CheckedFile(tmp_path / "file") as file:
        file.write(memoryview(os.urandom(9 * CHUNK + 5)))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = checked_file.store

    def store(path: Path, begin: int, data: memoryview, direct: bool) -> None:
        if begin >= 4 * CHUNK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(path, begin, data, direct)

    monkeypatch.setattr(checked_file, "store", store)
    with pytest.raises(OSError, match="No space left on device"), CheckedFile(tmp_path / "file") as file:
        file.write(memoryview(bytes(9 * CHUNK)))


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take a part of what it is given."""

    class Short:
        def __init__(self, file: object):
            self.file = file

        def __enter__(self) -> "Short":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def write(self, data: memoryview) -> int:
            return self.file.write(data[:100])

        def readinto(self, room: memoryview) -> int:
            return self.file.readinto(room[:333])

    true = checked_file.opened
    monkeypatch.setattr(checked_file, "opened", lambda path, direct: Short(true(path, False)))
    data = os.urandom(2 * CHUNK + 7)
    with CheckedFile(tmp_path / "file") as file:
        file.write(memoryview(data))
    assert (tmp_path / "file").read_bytes() == data
