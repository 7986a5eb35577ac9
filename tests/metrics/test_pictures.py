"""Sets of pictures, and what is wrong with them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from inkwash.metrics import pictures
from inkwash.metrics.pictures import picture_set


def fill(folder: Path, num: int, size: tuple[int, int] = (12, 8)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num):
        Image.new("RGB", size, (k, 0, 255)).save(folder / f"{k:03}.png")
        (folder / f"{k:03}.txt").write_text(f"number\n{k}\n")
    return folder


def test_batches_are_in_order_and_captions_beside(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "BATCH", 4)
    found = picture_set(fill(tmp_path / "a", 10))
    batches = list(found.batches())
    assert [len(batch) for batch in batches] == [4, 4, 2] and found.size == (12, 8)
    reds = (torch.cat(batches)[:, 0, 0, 0] + 1) * 127.5
    torch.testing.assert_close(reds, torch.arange(10.0), atol=1e-3, rtol=0)
    assert found.captions()[:2] == ["number 0", "number 1"]


def test_a_size_is_scaled_to_and_cropped(tmp_path: Path) -> None:
    fill(tmp_path / "a", 2)
    fill(tmp_path / "a" / "more", 1, (30, 30))
    (batch,) = picture_set(tmp_path / "a", (16, 16)).batches()
    assert batch.shape == (3, 3, 16, 16)


def test_bad_sets_are_one_line(tmp_path: Path) -> None:
    mixed = fill(tmp_path / "mixed", 2)
    Image.new("RGB", (5, 5)).save(mixed / "x.png")
    (fill(tmp_path / "torn", 1) / "y.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("mixed", r"several sizes, 12x8 \(000.png\) and 5x5 \(x.png\): give --size, such as --size 12x8"),
        ("torn", "y.png is not a readable picture"),
        ("empty", "there is no picture at"),
        ("none", "there is no picture at|not a readable picture"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            picture_set(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_missing_caption_is_named(tmp_path: Path) -> None:
    (fill(tmp_path / "a", 3) / "001.txt").unlink()
    with pytest.raises(ValueError, match=r"001.txt is not there"):
        picture_set(tmp_path / "a").captions()
