"""The examples of the README and of the docs do what they say, each block in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import inkwash
from inkwash.cli import main

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *DOCS)


def blocks(language: str) -> list:
    """The fenced blocks of a language, and where each begins."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page}:{line}"))
    return found


def run(*command: str, folder: Path) -> str:
    # the `inkwash` of this environment, also where it is not activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_line(line: str, folder: Path) -> None:
    """Run a line of a shell: `inkwash` in this process, which has all imported, and make without doing anything."""
    command, *arguments = shlex.split(line, comments=True)
    if command == "inkwash":
        assert main(arguments) == 0
    elif command == "make":  # its targets build the environment that we are in
        run(command, "--dry-run", *arguments, folder=ROOT)
    else:
        run("bash", "-euc", line, folder=folder)


def pictures(folder: Path, named: list[str]) -> list[Image.Image]:
    """All files of the folder but models, which are pictures, those that a block names among them."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    made = {path.name: Image.open(path) for path in files}
    stems = {re.sub(r"-\d+$", "", Path(name).stem) for name in made}  # a batch numbers its files
    assert named
    assert {Path(name).stem for name in named} <= stems
    for image in made.values():
        image.load()
    return list(made.values())


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert pictures(tmp_path, re.findall(r'save.*"(\S+\.png)"', code))


@pytest.mark.parametrize("code", blocks("sh"))
def test_shell(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = code.strip().splitlines()
    for line in lines:
        run_line(line, tmp_path)
    if not all(line.startswith("make ") for line in lines):
        images = pictures(tmp_path, re.findall(r"--output (\S+)", code))
        assert all("Steps: " in image.info["parameters"] for image in images)


def test_the_command_is_installed(tmp_path: Path) -> None:
    assert run("inkwash", "--version", folder=tmp_path).split() == ["inkwash", inkwash.__version__]


def test_both_kinds_of_example_are_found() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("sh")) >= 3


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
