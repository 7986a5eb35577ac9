"""Pictures that turn out to be broken while a run goes on, and entries of its cache that are."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.training.run import trained
from tests.support.processes import run_ranks

OPTIONS = {"steps": 6, "lr": 1e-2, "batch_size": 2, "resolution": 32, "buckets": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with masks. A header of the second says its size, and its pixels are cut off."""
    place = tmp_path / "pictures"
    (place / "mask").mkdir(parents=True)
    for k in range(6):
        noise = random.Random(k).randbytes(32 * 32 * 3)
        for path in (place / f"{k}.jpg", place / f"mask/{k}.jpg"):
            Image.frombytes("RGB", (32, 32), noise).save(path)
    cut(place / "1.jpg")
    return place


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("more", [{"cache": "none"}, {"random_crop": True}, {"masked_loss": True}])
def test_it_is_passed_over_in_any_step(
    folder: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: dict[str, object]
) -> None:
    """Where no cache is filled before, and where it is another picture's mask; and a stopped run goes on bit-equal."""
    if "masked_loss" in more:
        cut(folder / "mask/3.jpg")
    given = OPTIONS | {"model": str(tiny), "data": str(folder)} | more
    whole = trained("lora", output=str(tmp_path / "a/run"), **given)
    broken = {"pictures/1.jpg", "mask/3.jpg"} if "masked_loss" in more else {"pictures/1.jpg"}
    assert all(caplog.text.count(f"{name} is not a readable picture") == 1 for name in broken), caplog.text
    for steps in (3, 6):
        stopped = trained("lora", output=str(tmp_path / "b/run"), **given | {"steps": steps})
    assert whole and stopped
    one, two = load_file(whole), load_file(stopped)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    with pytest.raises(ValueError, match=r"[13]\.jpg is not a readable picture"):
        trained("lora", output=str(tmp_path / "c/run"), on_broken="stop", **given)


def test_of_nothing_else_there_is_an_end(folder: Path, tiny: Path, tmp_path: Path) -> None:
    for path in folder.glob("[023456].jpg"):
        path.unlink()
    with pytest.raises(ValueError, match="every picture of the bucket"):
        trained(
            "lora", model=str(tiny), data=str(folder), output=str(tmp_path / "run"), cache="none", **OPTIONS
        )


def test_ranks_leave_out_the_same(folder: Path, tiny: Path, tmp_path: Path) -> None:
    """Each finds those of its share of the pictures, and all go on without them."""
    line = [
        "train",
        "lora",
        f"--model={tiny}",
        f"--data={folder}",
        "--steps=4",
        "--resolution=32",
        "--no-buckets",
    ]
    line += ["--lr=1e-1", "--optimizer=sgd", "--save-dtype=fp32"]
    assert main([*line, "--batch-size=2", f"--output={tmp_path / 'one'}"]) == 0
    run_ranks(2, main, [*line, "--batch-size=1", f"--output={tmp_path / 'two'}"])
    wanted, made = (load_file(tmp_path / f"{name}/{name}.safetensors") for name in ("one", "two"))
    for key, value in wanted.items():
        torch.testing.assert_close(made[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"cache_text": True}])
def test_a_damaged_entry_is_made_anew(
    folder: Path, tiny: Path, tmp_path: Path, more: dict[str, object]
) -> None:
    given = OPTIONS | {"model": str(tiny), "data": str(folder), "cache": str(tmp_path / "cache")} | more
    trained("lora", output=str(tmp_path / "a"), **given)
    entries = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.safetensors")}
    for k, (path, content) in enumerate(entries.items()):
        path.write_bytes(content[:50] if k % 2 else b"")
    trained("lora", output=str(tmp_path / "b"), **given)
    assert {path: path.read_bytes() for path in entries} == entries
