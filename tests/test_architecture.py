"""Rules of the source as a whole, which no linter checks. What may import what is in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("src", "recipes", "benchmarks") for path in (ROOT / room).rglob("*.py"))
CATCH_ALLS = {"utils", "util", "helpers", "misc", "common", "base"}
UNSAFE = {"pickle", "dill", "marshal", "shelve", "joblib"}  # reading their files runs code


def imports(path: Path) -> set[str]:
    """First names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 450, "split it by what its parts are about"
    assert path.stem not in CATCH_ALLS, "a name that says nothing"
    assert "torchvision" not in imports(path)
    assert not imports(path) & UNSAFE
    assert "torch.load(" not in text, "weights are safetensors"
    if text:
        assert ast.get_docstring(ast.parse(text)), "what is this file for?"


LONGER = {"prepare_diffusion": 75}  # lines of a function that has yet to be split
SHORT = [path for path in SOURCES if "src" in path.parts]


@pytest.mark.parametrize("path", SHORT, ids=lambda p: p.relative_to(ROOT / "src").as_posix())
def test_the_library_is_in_short_pieces_that_say_what_they_are(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 350, "split it by what its parts hold"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = LONGER.get(node.name, 60)
            assert node.end_lineno and node.end_lineno - node.lineno < most, f"{node.name} is too long"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"what is {node.name}?"


def test_the_library_imports_neither_its_recipes_nor_its_oracles() -> None:
    oracles = {"recipes", "diffusers", "k_diffusion", "peft", "lycoris"}
    found = [path for path in SOURCES if "src" in path.parts and imports(path) & oracles]
    assert found == [ROOT / "src/inkwash/bench/worker.py"]  # whose other side diffusers is


def test_what_is_heavy_is_imported_late() -> None:
    """`import inkwash` and the command line's help need no torch."""
    code = "import sys, inkwash, inkwash.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "numpy", "PIL", "transformers"} == set()


def test_nothing_large_is_committed() -> None:
    """Shards of the shipped model are the largest files; everything else is text or a picture of the docs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {path: path.stat().st_size for path in paths if path.exists()}
    assert [path for path, size in sizes.items() if path.suffix == ".safetensors" and size > 16_000_000] == []
    assert [path for path, size in sizes.items() if path.suffix != ".safetensors" and size > 2_000_000] == []


def test_names_of_version_0_1_still_lead_somewhere() -> None:
    """Until 0.3: other people's scripts import them."""
    from inkwash import files
    from inkwash.pipeline import images, metadata, pictures
    from inkwash.pipeline.record import a1111
    from inkwash.weights import adapter_names
    from inkwash.weights import files as old_files
    from inkwash.weights.names import tables

    assert old_files.ModelFileError is files.ModelFileError
    assert pictures.open_picture is images.open_picture
    assert metadata.parse_parameters is a1111.parse_parameters
    assert adapter_names.unet_paths is tables.unet_paths
