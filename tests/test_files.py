"""Files are written whole, where their name says, and nothing is left behind."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inkwash import files
from inkwash.files import append_line, atomic, check_writable, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/a.txt")
    for content in ("new", "newer"):  # the target is made, and replaced
        write_text(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there/a.txt").read_text() == content
    assert names(tmp_path / "there") == ["a.txt"]


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=r"a'$"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a", "b"]


def special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path, kind: str, linked: bool) -> None:
    path = tmp_path / "a.txt"
    special(path, kind)
    before = path.lstat()
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    for write in (lambda: write_text(path, "x"), lambda: check_writable(path)):
        with pytest.raises(OSError, match="folder|device, pipe or socket") as error:
            write()
        assert error.value.filename == str(path)
    assert (before.st_ino, before.st_mode) == ((now := (tmp_path / "a.txt").lstat()).st_ino, now.st_mode)


def test_mode_and_owner_of_a_replaced_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 1235)
    old = path.stat()
    write_text(path, "new")
    new = path.stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    assert path.read_text() == "new"


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_the_longest_names_are_taken(tmp_path: Path) -> None:
    for name in ("a" * 255, "a" * 250 + ".json", "木" * 85):
        write_text(tmp_path / name, "x")
        check_writable(tmp_path / name)
    with pytest.raises(OSError, match="too long") as error:
        write_text(tmp_path / ("a" * 256), "x")
    assert error.value.filename == str(tmp_path / ("a" * 256))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("no number"), KeyboardInterrupt()]
)
def test_what_fails_leaves_the_old_file_and_names_it(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, atomic(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(path)


def test_a_full_disk_is_noticed(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; the signal that comes with it is ignored by Python."""
    code = f"""
import resource
from pathlib import Path
from inkwash.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path({str(tmp_path / "a.bin")!r}), bytes(2000))
except OSError as error:
    print(error.filename, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'a.bin'} File too large\n"
    assert names(tmp_path) == []


def test_null_characters_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="null character"):
        write_text(tmp_path / "a\0b", "x")


KILLED = """
import os, signal, sys
from pathlib import Path
from inkwash.files import atomic
with atomic(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_a_living_ones_stays(tmp_path: Path) -> None:
    for name in ("a.txt", "b.png"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    (left,) = names(tmp_path)  # the second one has swept what the first one left
    assert left.endswith(".partial.png")
    with atomic(tmp_path / "c.txt") as living:
        living.write_text("c")
        write_text(tmp_path / "d.txt", "d")
        assert names(tmp_path) == sorted([living.name, "d.txt"])
    assert names(tmp_path) == ["c.txt", "d.txt"]


def test_files_of_another_system_are_not_swept(tmp_path: Path) -> None:
    """On a network file system its process numbers mean nothing here."""
    strange = tmp_path / ".inkwash-00000000-ffff-1-0.partial.png"
    strange.touch()
    near = tmp_path / f".inkwash-{files.host()}-notes.partial"
    near.touch()
    write_bytes(tmp_path / "a.txt", b"x")
    assert strange.exists() and near.exists()


def test_files_of_another_system_are_swept_a_day_after_the_last_write(tmp_path: Path) -> None:
    """Also those from before a restart, whose process numbers mean nothing either."""
    old, new = (tmp_path / f".inkwash-00000000-ffff-1-{k}.partial" for k in range(2))
    for path, hours in ((old, 25), (new, 23)):
        path.touch()
        os.utime(path, times=(time.time() - hours * 3600,) * 2)
    write_bytes(tmp_path / "a.txt", b"x")
    assert names(tmp_path) == sorted([new.name, "a.txt"])


def test_a_later_save_of_the_same_process_sweeps_too(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "b.txt")], check=False)
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / "c.txt", "c")
    assert names(tmp_path) == ["a.txt", "c.txt"]


def test_a_forked_process_has_temporary_names_of_its_own() -> None:
    code = """
import os
from inkwash.files import process_name
mine = process_name()
reading, writing = os.pipe()
if (child := os.fork()) == 0:
    os.write(writing, process_name().encode())
    os._exit(0)
os.waitpid(child, 0)
theirs = os.read(reading, 100).decode()
assert f"-{child:x}-" in theirs and theirs != mine
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_appended_line_that_does_not_fit_names_the_file(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from inkwash.files import append_line
path = Path({str(tmp_path / "log.jsonl")!r})
append_line(path, "a" * 500)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    append_line(path, "b" * 500)
except OSError as error:
    print(error.filename, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'log.jsonl'} File too large\n"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="pipe"):
        append_line(tmp_path / "fifo", "x")  # would wait for a reader
