"""Which way is fastest is measured once, and kept."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from inkwash.kernels import convolve, fastest, library
from inkwash.nn.blocks import ResBlock, channels_last


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "answers.json"
    monkeypatch.setattr(fastest, "path", lambda: path)
    fastest.answers.cache_clear()
    yield path
    fastest.answers.cache_clear()


def ways(**milliseconds: float) -> tuple[dict, list[str]]:
    called: list[str] = []

    def way(name: str, wait: float) -> None:
        called.append(name)
        time.sleep(wait / 1000)

    return {name: (lambda n=name, w=wait: way(n, w)) for name, wait in milliseconds.items()}, called


def test_the_fastest_is_found_once_and_kept(file: Path) -> None:
    given, called = ways(slow=30, quick=2, middling=15)
    assert fastest.fastest("a", given) == "quick"
    assert called == ["slow", "quick", "middling"] * fastest.ROUNDS
    assert fastest.fastest("a", given) == "quick" and len(called) == 9
    fastest.answers.cache_clear()  # a new process
    assert fastest.fastest("a", given) == "quick" and len(called) == 9
    assert fastest.fastest("b", given) == "quick" and len(called) == 18


def test_the_first_way_stays_unless_another_is_clearly_faster(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, wanted in ((97, "first"), (90, "other")):
        clock = [0.0]
        monkeypatch.setattr(fastest.time, "perf_counter", lambda clock=clock: clock[0])
        given = {
            name: (lambda wait=wait, clock=clock: clock.__setitem__(0, clock[0] + wait))
            for name, wait in {"first": 100, "other": other}.items()
        }
        assert fastest.fastest(f"{other}", given) == wanted


def test_ways_that_are_gone_are_measured_again(file: Path) -> None:
    given, called = ways(one=1, two=20)
    file.write_text(json.dumps({"a": "gone"}))
    fastest.answers.cache_clear()
    assert fastest.fastest("a", given) == "one" and len(called) == 2 * fastest.ROUNDS


def test_what_another_process_measured_first_stays(file: Path) -> None:
    given, called = ways(slow=20, quick=1)
    assert fastest.fastest("a", given) == "quick"
    file.write_text(json.dumps({"b": "slow"}))  # which has not seen our first answer
    assert fastest.fastest("b", given) == "slow" and len(called) == 6
    assert fastest.fastest("c", given) == "quick"
    kept = json.loads(file.read_text())
    assert kept == {"a": "quick", "b": "slow", "c": "quick"}


@pytest.mark.parametrize("content", ["", "[1", "[]", "\\xff"])
def test_a_damaged_file_is_measured_anew(file: Path, content: str) -> None:
    file.write_text(content)
    assert fastest.fastest("a", ways(slow=20, quick=1)[0]) == "quick"
    assert "quick" in json.loads(file.read_text()).values()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(fastest, "path", lambda: tmp_path / "file" / "answers.json")
    fastest.answers.cache_clear()
    assert fastest.fastest("a", ways(slow=20, quick=1)[0]) == "quick"
    fastest.answers.cache_clear()


@pytest.mark.skipif(library.load() is None, reason="there are no kernels here")
def test_what_is_measured_is_not_kept_by_a_checkpoint(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass measures and the second one does not; torch's checkpoints compare what both keep."""
    monkeypatch.setattr(convolve, "MUCH", 0)
    torch.manual_seed(0)
    block = channels_last(ResBlock(64, 32, 64))
    torch.nn.init.normal_(block.out_layers[3].weight, std=0.02)
    x = torch.randn(2, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        checkpoint(block, x, torch.randn(2, 32), use_reentrant=False).float().square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0 and file.exists()
