"""Tables and tars as people have them: what is odd is read as it stands, and what can't be read is one line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from inkwash.cli import main
from inkwash.data.dataset import Filter
from inkwash.data.folders import Subset, read_examples
from tests.data.test_tars import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        Image.new("RGB", (32, 32), (80 * k, 0, 0)).save(tmp_path / f"{k}.png")
    return tmp_path


def test_numbers_are_captions_as_they_are_written(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "file_name,text,aesthetic\n0.png,7,5.5\n1.png,007,nan\n2.png,nan,4\n"
    )
    examples = read_examples(Subset(folder))
    assert [example.captions for example in examples] == [("7",), ("007",), ("nan",)]
    assert [example.columns["aesthetic"] for example in examples[::2]] == [5.5, 4.0]


def test_a_score_that_is_no_number_passes_no_filter(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,score\n0.png,1\n1.png,nan\n2.png,2\n")
    examples = read_examples(Subset(folder))
    kept = {text: [Filter.parse(text).keeps(one) for one in examples] for text in ("score<2", "score>=1")}
    assert kept == {"score<2": [True, False, False], "score>=1": [True, False, True]}


@pytest.mark.parametrize("verb", [["dataset", "inspect"], ["train", "lora", "--output", "run", "--data"]])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tar", b"junk" * 4000, "a.tar is not a whole tar: invalid header"),
        ("a.tar", None, "a.tar is not a whole tar: unexpected end of data"),
        ("a.tar", [1, 2], "a.tar:0.json is not an object with columns"),
        (
            "metadata.csv",
            b"file_name;text\n0.png;7\n",
            "row 1 has no column file_name; it has file_name;text",
        ),
    ],
)
def test_what_can_not_be_read_is_one_line(
    folder: Path, name: str, content: object, said: str, verb: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        path = write(
            folder / name, {"0.png": Path("0.png").read_bytes(), "0.json": json.dumps(content).encode()}
        )
        path.write_bytes(path.read_bytes()[: None if content else 700])
    assert main([*verb, "."]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error
