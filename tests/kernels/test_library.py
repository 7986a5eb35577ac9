"""The compiled library in its cache, and small products in a fixed order."""

import ctypes
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from inkwash.kernels import library
from inkwash.kernels.threads import FEW_ROWS, fixed_order


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that counts its calls and writes what it was asked."""
    path = tmp_path / "compiler"
    path.write_text(f'#!/bin/sh\necho x >> {tmp_path}/calls; for last; do :; done; echo "$*" > "$last"\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "calls"


def test_a_library_that_is_damaged_is_built_again(compiler: Path) -> None:
    path = library.built()
    whole = path.read_bytes()
    assert library.built() == path and compiler.read_text().count("x") == 1
    for damage in (
        lambda: path.write_bytes(whole[:-3]),
        lambda: path.write_bytes(b"?" + whole[1:]),
        lambda: path.write_bytes(b""),
        lambda: path.with_suffix(".sha256").unlink(),
        lambda: path.with_suffix(".sha256").write_bytes(b"\xff\xfe junk"),
    ):
        damage()
        before = compiler.read_text().count("x")
        library.built()
        assert compiler.read_text().count("x") == before + 1 and library.intact(path)


def test_a_cache_that_cannot_be_made_is_said_and_replaced(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        path = library.built()
    assert library.intact(path) and tmp_path not in path.parents
    assert "can't be used" in caplog.text and str(tmp_path / "file") in caplog.text


@pytest.mark.parametrize("name", ["gcc", "g++"])
def test_a_c_compiler_links_what_cpp_needs(name: str, tmp_path: Path) -> None:
    if (compiler := shutil.which(name)) is None:
        pytest.skip(f"there is no {name}")
    source = tmp_path / "thrown.cpp"
    source.write_text(
        "#include <stdexcept>\n"
        'extern "C" int caught() { try { throw std::runtime_error("x"); } catch (...) { return 7; } }\n'
    )
    library.compiled(compiler, ("-shared", "-fPIC"), [source], tmp_path / "thrown.so")
    assert ctypes.CDLL(str(tmp_path / "thrown.so"), mode=os.RTLD_NOW).caught() == 7


@pytest.mark.parametrize("rows", [1, 8, 77, 154])
def test_small_products_do_not_depend_on_the_number_of_threads(rows: int) -> None:
    from inkwash.kernels import conv2d, linear

    random = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    x, weight = torch.randn(rows, 1024, generator=random), torch.randn(256, 1024, generator=random)
    picture = torch.randn(1, 192, 8, 8, generator=random).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(384, 192, 3, 3, generator=random).contiguous(memory_format=torch.channels_last)
    made = []
    try:
        with torch.inference_mode():
            for num in (1, 2, 3, 4):
                torch.set_num_threads(num)
                made.append((linear(x, weight, None), conv2d(picture, kernel, None, 1, 1)))
                assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one in made[1:] for a, b in zip(made[0], one, strict=True))


def test_one_thread_computes_what_is_small_alone() -> None:
    x, weight = torch.zeros(1), torch.zeros(4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows, wide, grad, wanted in (
            (8, torch.float32, False, 1),
            (FEW_ROWS + 1, torch.float32, False, 2),
            (8, torch.bfloat16, False, 2),
            (8, torch.float32, True, 2),
        ):
            with torch.set_grad_enabled(grad), fixed_order(x.to(wide), weight, rows, FEW_ROWS):
                assert torch.get_num_threads() == wanted
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_table_of_speeds_takes_several_rows() -> None:
    from benchmarks import speed

    _, given, _ = speed.app.parse_args(["--rows", "unet", "decode"], exit_on_error=False, print_error=False)
    assert given.arguments["rows"] == ("unet", "decode")


def test_the_twin_of_a_small_layer_is_torchs() -> None:
    x, weight, bias = torch.randn(8, 192), torch.randn(192, 192), torch.randn(192)
    with torch.inference_mode():
        from inkwash.kernels.linear import plain_linear

        assert torch.equal(plain_linear(x, weight, bias), F.linear(x, weight, bias))
