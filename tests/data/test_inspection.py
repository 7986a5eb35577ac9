"""`inkwash dataset inspect`: what it counts, what it finds broken or doubled, and the sheet."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from inkwash.cli import main
from inkwash.data.folders import DataError, Subset, read_examples
from inkwash.data.inspection import gradient_bits


def noise(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture of coarse random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of their own; a copy, a smaller JPEG, a brighter one, a mirrored one; and a cut file."""
    place = tmp_path / "data"
    place.mkdir()
    for k in range(5):
        noise(k, (96 + 32 * k, 64)).save(place / f"{k}.png")
        (place / f"{k}.txt").write_text(f"a picture, number {k}")
    (place / "copy.png").write_bytes((place / "0.png").read_bytes())
    Image.open(place / "1.png").resize((100, 50)).save(place / "small.jpg", quality=80)
    ImageEnhance.Brightness(Image.open(place / "2.png")).enhance(1.02).save(place / "brighter.png")
    Image.open(place / "3.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "mirrored.png")
    (place / "cut.png").write_bytes((place / "4.png").read_bytes()[:200])
    (place / "cut.txt").write_text("broken")
    return place


def test_what_there_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert (
        main(["dataset", "inspect", str(folder), "--resolution", "128", "--sheet", str(sheet), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 9 and found["without_caption"] == 4 and found["words"] == [4, 4, 4]
    assert found["sizes"] == {"width": [96, 160, 224], "height": [50, 64, 64]}
    assert [message.split(":")[0] for message in found["broken"]] == [
        f"{folder}/cut.png is not a readable picture"
    ]
    assert [message.split(":")[0] for message in found["too_small"]] == [f"{folder}/small.jpg"]
    assert sum(found["buckets"].values()) == 8 and found["tags"]["a picture"] == 5
    names = [{Path(name).name for name in group} for group in found["exact"] + found["near"]]
    assert names == [{"0.png", "copy.png"}, {"1.png", "small.jpg"}, {"2.png", "brighter.png"}]
    with Image.open(sheet) as image:
        assert image.size[0] > 300 and len(image.getcolors(2**24) or []) > 1000
    assert main(["dataset", "inspect", str(folder)]) == 0
    assert "9 pictures, 9 seen in an epoch; 1 broken" in capsys.readouterr().out


def test_kohyas_repeats_count(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.toml").write_text(
        f"[[datasets]]\nresolution = 128\n[[datasets.subsets]]\nimage_dir = '{folder}'\nnum_repeats = 3\n"
    )
    assert main(["dataset", "inspect", str(tmp_path / "set.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == 27


def test_bits_follow_gradients_and_not_brightness() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 144, 2, dtype=np.uint8), (64, 1)))
    assert gradient_bits(ramp) == int("1" * 64 + "0" * 64, 2)
    assert gradient_bits(ramp) == gradient_bits(ramp.point(lambda value: value // 2 + 20))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no nowhere"),
        ([".", "--resolution", "4"], "--resolution 4 is not in 8 to 16384"),
        ([".", "--sheet", "x/y.png"], "there is no folder x"),
        (["broken"], "none of 1 pictures can be read"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"no picture")
    assert main(["dataset", "inspect", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


# ---------------------------------------------------------------- parquet


def test_rows_of_parquet_files_are_pictures(tmp_path: Path) -> None:
    """As the datasets library writes them, in several groups of rows, in any order."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = []
    for k in range(5):
        stream = BytesIO()
        noise(k).save(stream, "PNG")
        rows.append(
            {"image": {"bytes": stream.getvalue(), "path": f"{k}.png"}, "text": f"number {k}", "aesthetic": k}
        )
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/train-0.parquet", row_group_size=2)
    examples = read_examples(Subset(tmp_path))
    assert [example.captions for example in examples] == [(f"number {k}",) for k in range(5)]
    assert [example.columns["aesthetic"] for example in examples] == list(range(5))
    for k in (4, 0, 3, 1, 2):
        assert examples[k].size == (96, 64)
        assert np.array_equal(np.asarray(examples[k].open()), np.asarray(noise(k)))
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet has no column image or .*; it has text"):
        read_examples(Subset(tmp_path / "none.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"bad\.parquet can't be read"):
        read_examples(Subset(tmp_path / "bad.parquet"))
