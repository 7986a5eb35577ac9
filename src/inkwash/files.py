"""Writing files whole or not at all."""

import errno
import hashlib
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

NUMBERS = count()
PARTIAL = ".partial"
TEMPORARY = re.compile(r"\.inkwash-(?P<host>\w{8})-(?P<pid>[\da-f]+)-(?P<start>[\da-f]+)-[\da-f]+\.partial")
DAY = 86_400  # seconds


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
    """The file that `path` leads to through symbolic links, and its status. Raises OSError if it is not a regular file."""
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
    """Check that `path` can be written; raise OSError if it is not a regular file or its folder is not writable."""
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


def user_cache() -> Path:
    """The user's folder for what inkwash can compute or fetch again; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inkwash"


def process_name() -> str:
    """A short name for this process (not its parent, after a fork), from which others can see if it still runs."""
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
    """Start time of a process, in the system's ticks; None where it is dead or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def sweep(folder: Path) -> None:
    """Remove the temporary files that dead processes left in a folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".inkwash-")]
    for name in names:
        if (match := TEMPORARY.match(name)) and is_abandoned(match, folder / name):
            with suppress(OSError):  # swept by another process meanwhile, or not ours to remove
                (folder / name).unlink()


def is_abandoned(match: re.Match[str], path: Path) -> bool:
    """Return True if the process that wrote a temporary file is dead: here, by its number and start; else (another
    host on a network file system, or before a restart) by a day without a write."""
    if match["host"] == host() and started(os.getpid()):
        return started(int(match["pid"], 16)) != int(match["start"], 16)
    try:
        return time.time() - path.lstat().st_mtime > DAY
    except OSError:
        return False


def append_line(path: Path, line: str) -> None:
    """Add a line to a file such as a log; a crash may cut the last one."""
    with naming(path):
        writable(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file."""
    with atomic(path) as partial:
        partial.write_bytes(content)
