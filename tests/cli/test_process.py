"""The program as a process: its streams, signals and messages."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

COMMAND = [sys.executable, "-m", "inkwash"]
TEXT = "猫 rocket\nSteps: 4, Sampler: Euler, Seed: 3, Size: 64x64"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    info = PngInfo()
    info.add_text("parameters", TEXT)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def run(*argv: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, argv)], capture_output=True, timeout=120, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_never_dies_of_its_encoding(picture: Path, encoding: str) -> None:
    done = run("info", picture, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    wanted = "猫" if encoding == "utf-8" else "\\u732b"
    assert done.stdout.decode(encoding).startswith(f"{wanted} rocket")
    done = run("info", picture.with_name("猫.png"), env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_names_that_are_no_text_are_shown(tmp_path: Path) -> None:
    done = run(b"info".decode(), os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    assert done.returncode == 1 and b"\\udcff.png" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["1", "2", "12", "0"])
def test_closed_streams_are_no_error(picture: Path, closed: str) -> None:
    shell = " ".join([*COMMAND, "info", str(picture), *(f"{number}>&-" for number in closed)])
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_a_reader_that_has_read_enough_is_no_error(picture: Path) -> None:
    for verb in ("--help", f"info {picture} --json"):
        shell = f"{' '.join(COMMAND)} {verb} | true"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"")


def test_stdout_on_a_full_disk_is_one_line(picture: Path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
    code += "import inkwash.__main__ as program; sys.exit(program.run())"
    with (picture.parent / "out.txt").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code, "info", str(picture)],
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert done.returncode == 1 and done.stderr == b"inkwash: File too large\n"


def test_ctrl_c_at_any_time_is_one_line(tmp_path: Path) -> None:
    """Once the program's own code runs; a moment before that the interpreter itself answers."""
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    own = 0  # answered by our code, however slow the machine starts it
    for wait in (0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.5):
        process = subprocess.Popen(
            [*COMMAND, "generate", "a", "--steps", "500", "--seed", "1"], cwd=tmp_path, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, preexec_fn=heard,
        )  # fmt: skip
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if b"Traceback" in err and b", in run" not in err:
            continue  # before our first line
        assert (process.returncode, err) == (130, b"inkwash: interrupted\n")
        own += 1
    assert own
    assert not list(tmp_path.iterdir())


def test_messages_say_what_to_type() -> None:
    from inkwash.cli import main

    def line(*argv: str) -> str:
        import contextlib
        import io

        with contextlib.redirect_stderr(io.StringIO()) as err:
            assert main(argv) == 2
        return err.getvalue()

    assert line("generate", "a", "red", "taxi") == (
        "inkwash: unexpected 'red' 'taxi'; put a prompt of several words in quotes\n"
    )
    assert line("xyzzy", "x").startswith(
        "inkwash: there is no command 'xyzzy'; the commands are annotate, bench, convert,"
    )
    assert line("generat", "x") == "inkwash: there is no command 'generat'; did you mean generate?\n"
    assert line("train", "lroa") == "inkwash: there is no command 'lroa'; did you mean lora?\n"
    assert line("generate", "-1 cat") == (
        "inkwash: unknown option '-1 cat'; if it is a prompt that begins with a dash, put -- before it\n"
    )
    assert line("generate", "x", "--negative-prompt", "-blurry") == (
        "inkwash: --negative-prompt requires an argument; for one that begins with a dash, "
        "write --negative-prompt='-blurry'\n"
    )


def test_help_shows_tags_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    from inkwash.cli import main

    assert main(["generate", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for tag in ("<lora:name:strength>", "<hypernet:name:strength>", "__name__"):
        assert tag in shown
