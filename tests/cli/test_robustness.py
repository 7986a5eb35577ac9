"""Any command line ends in an exit code and, where it fails, in a line that says why."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from inkwash.cli import app, main

EXIT_CODES = {0, 1, 2, 130}
SLOW = {
    "--compile",
    "--no-compile",
    "--model",
    "--steps",
    "--refiner",
}  # too slow at their own values
WORDS = (
    "",
    ".",
    "..",
    "-",
    "--",
    "-x",
    "--wat",
    "0",
    "1",
    "-1",
    "2",
    "32",
    "40",
    "0.5",
    "1e9",
    "nan",
    "inf",
    "1" * 30,
    "1" * 5000,
    "٣",
    "1,1",
    "0,0,1,1",
    "32x32",
    "fp16",
    "single",
    "diffusers",
    "euler",
    "karras",
    "a (red:1.2) taxi",
    "[a:b:0.5]",
    "((([[",
    "<lora:x:1>",
    "<lora:lora:y>",
    "<lora:lora:1>",
    "__colours__",
    "{a|b}",
    "a AND b :2",
    "\\",
    "猫",
    "\ud800",
    "\udcff.png",
    "a\nb",
    "a\0b",
    "[bold]x[/bold]",
    "[/]",
    "picture.png",
    "grey.jpg",
    "cut.png",
    "text.txt",
    "empty",
    "folder",
    "lora.safetensors",
    "cut.safetensors",
    "pickle.pt",
    "styles.csv",
    "folder/new.png",
    "missing/new.png",
    "text.txt/new.png",
    "new.webp",
    "new.jpeg",
    "loop.png",
    "link.png",
    "x" * 300 + ".png",
    "x" * 4096,
    "y/" * 2050 + "z.png",
    "tiny",
    "mini-",
)


def options_of(*verb: str) -> set[str]:
    """The names of a verb's options, as its own parser knows them."""
    node = app
    for name in verb:
        node = node[name]
    names = {name for argument in node.assemble_argument_collection() for name in argument.names}
    return {name for name in names if name.startswith("--")}


# what has verbs of its own, serves until it is stopped, or draws or fetches for long
APART = ("bench", "dataset", "evaluate", "explain", "fetch-metrics", "serve", "train")
VERBS = [(name,) for name in app if not name.startswith("-") and name not in APART]
TAKES = {verb: options_of(*verb) for verb in [*VERBS, ("explain", "denoise")]}
NOTHING = [(), ("nothing",), *(("bench", verb) for verb in ("unet", "vae", "text", "picture", "nothing"))]
COMMON = ("--help", "--version", "--json", "--output", "--seed")
MODELS = ("tiny",) * 6 + ("cut.safetensors", "folder", "missing", "text.txt", "")
STEPS = ("1",) * 6 + ("2", "0", "x", "1.5")
values = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="/"), max_size=20)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    verb = draw(st.sampled_from([*TAKES, *NOTHING]))
    names = st.sampled_from([*sorted(TAKES.get(verb, set()) - SLOW), *COMMON])
    given_options = st.tuples(names, values).map(list) | st.tuples(names, values).map(
        lambda pair: ["=".join(pair)]
    )
    words = [*verb, *draw(st.lists(values, max_size=3))]
    words += itertools.chain(*draw(st.lists(given_options | st.tuples(names).map(list), max_size=4)))
    if verb[:1] == ("bench",):
        words += ["--device", "nowhere"]  # refused before anything is measured
    for name, choices in (("--model", MODELS), ("--steps", STEPS)):
        if name in TAKES.get(verb, ()):
            words += [name, draw(st.sampled_from(choices))]
    return words


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files of every kind, which is the current one."""
    folder, before = tmp_path_factory.mktemp("any"), Path.cwd()
    os.chdir(folder)
    (folder / "tiny").symlink_to(tiny)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text.txt").write_text("a red taxi\n")
    (folder / "styles.csv").write_text("name,prompt,negative_prompt\nx,y\n")
    (folder / "pickle.pt").write_bytes(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.")
    (folder / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (folder / "lora.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "link.png").symlink_to("folder/linked.png")
    Image.new("L", (32, 32)).save(folder / "grey.jpg")
    assert main(["generate", "a taxi", "--model", "tiny", "--steps", "1", "--output", "picture.png"]) == 0
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:200])
    yield folder
    os.chdir(before)


def check(line: list[str], encoding: str, closed: tuple[bool, bool]) -> None:
    out, err = (None if shut else io.TextIOWrapper(io.BytesIO(), encoding) for shut in closed)
    with redirect_stdout(out), redirect_stderr(err):
        code = main(line)
    assert code in EXIT_CODES
    if err is None:
        return
    err.flush()
    said = err.buffer.getvalue().decode(encoding)
    assert "Traceback" not in said
    if code:
        assert said.rstrip("\n").rpartition("\n")[2].startswith("inkwash: "), said


def law(number: int, start: int | None = None) -> None:
    """The law over so many command lines, with any encoding, and with closed streams. start: always the same lines."""

    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        line=command_lines(),
        encoding=st.sampled_from(("utf-8", "ascii", "cp1252", "utf-16")),
        closed=st.tuples(*[st.sampled_from((False, False, False, True))] * 2),
    )
    def holds(line: list[str], encoding: str, closed: tuple[bool, bool]) -> None:
        check(line, encoding, closed)

    (holds if start is None else seed(start)(holds))()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_any_command_line_ends_in_an_exit_code_and_a_line(folder: Path, no_network: None) -> None:
    law(200)


@pytest.mark.full
@pytest.mark.parametrize("piece", range(40))
def test_twenty_thousand_command_lines_end_in_an_exit_code_and_a_line(
    folder: Path, no_network: None, piece: int
) -> None:
    """In pieces, each always of the same lines, so that one can be run alone or again: -k 'twenty and [7]'."""
    law(500, piece)


LINES = (
    ("info", "picture.png"),
    ("inspect", "tiny", "--json"),
    ("generate", "--help"),
    ("generate", "猫", "--wat"),
)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("closed", ["", "1", "2", "12", "012"])
def test_a_process_with_closed_streams_and_an_old_encoding_ends_in_an_exit_code(
    folder: Path, line: tuple[str, ...], closed: str
) -> None:
    shell = '"$0" -m inkwash "$@" ' + " ".join(f"{number}>&-" for number in closed)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, *line], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == (2 if "--wat" in line else 0)
    assert b"Traceback" not in done.stderr + done.stdout
    if done.returncode and "2" not in closed:
        assert done.stderr.startswith(b"inkwash: ") and done.stderr.count(b"\n") == 1
