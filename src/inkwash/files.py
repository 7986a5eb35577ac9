"""Writing files whole or not at all."""

import errno
import hashlib
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

NUMBERS = count()
PARTIAL = ".partial"


class ModelFileError(ValueError):
    """A model file, or a description beside one, that is broken, hostile, or of a kind that is not supported."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, flushed to disk and renamed to it when the block ends well, else removed.

    A symbolic link is followed, and a replaced file's mode and owner stay. What processes that are dead left behind in the
    folder is removed first. Raises OSError that names `path`: for a device, pipe, socket or folder, and for all that goes
    wrong with the disk.
    """
    with naming(path):
        target, old = writable(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        partial = target.with_name(f".{process_name()}-{next(NUMBERS):x}{PARTIAL}{target.suffix[:16]}")
        try:
            yield partial
            if old is not None:
                os.chmod(partial, stat.S_IMODE(old.st_mode))
                with suppress(PermissionError, AttributeError):
                    os.chown(partial, old.st_uid, old.st_gid)
            flush(partial)
            os.replace(partial, target)
            flush(target.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path`, whatever file it came from."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.EIO, str(error), str(path)) from error
        raise type(error)(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


def writable(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file that `path` means, through symbolic links, and what is there. Raises OSError for what is no file."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "the name holds a null character", str(path))
    target = Path(os.path.realpath(path))
    try:
        old = target.stat()
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; a file is to be written", str(path))
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "is a device, pipe or socket; give the name of a regular file", str(path))
    return target, old


def check_writable(path: Path) -> None:
    """Raise the OSError that writing `path` would end in: for what is no file, and a folder that can't be written in."""
    with naming(path):
        target, _ = writable(path)
        probe = target.with_name(f".{process_name()}-{next(NUMBERS):x}{PARTIAL}")
        probe.touch()
        probe.unlink()


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk, where the system can say so of it."""
    try:
        number = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no folder
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # no such thing on this file system
            raise
    finally:
        os.close(number)


@cache
def process_name() -> str:
    """A short name for this process, by which another one can tell whether it still runs."""
    return f"inkwash-{host()}-{os.getpid():x}-{started(os.getpid()) or 0:x}"


@cache
def host() -> str:
    """The system that process numbers belong to: this boot of this machine, or of this container."""
    about = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            about.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text())
    return hashlib.sha256("".join(about).encode()).hexdigest()[:8]


def started(pid: int) -> int | None:
    """When a process began, in the system's ticks; None where it is dead or the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def sweep(folder: Path) -> None:
    """Remove the temporary files of dead processes of this system, once in a process and folder."""
    if not Path("/proc/self/stat").exists():
        return
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.startswith(f".inkwash-{host()}-") and PARTIAL in entry.name
        ]
    for name in names:
        parts = name.split(PARTIAL)[0].split("-")
        with suppress(ValueError, IndexError, OSError):
            if started(int(parts[2], 16)) != int(parts[3], 16):
                (folder / name).unlink()


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file."""
    with atomic(path) as partial:
        partial.write_bytes(content)
