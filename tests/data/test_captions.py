"""Captions that vary, by kohya's rules, and sets of kohya's description."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from inkwash.data.buckets import BucketRules
from inkwash.data.captions import CaptionRules, vary
from inkwash.data.folders import DataError, read_examples
from inkwash.data.kohya import read_kohya


def seen(text: str, num: int = 400, **rules: object) -> Counter[str]:
    random = Random(0)
    return Counter(vary([text], CaptionRules(**rules), random) for _ in range(num))  # type: ignore[arg-type]


def test_tags_move_but_those_that_are_kept() -> None:
    found = seen("a, b, c, d", shuffle=True, keep_tokens=2)
    assert found.keys() == {"a, b, c, d", "a, b, d, c"} and min(found.values()) > 150
    assert seen("a b ||| c, d", shuffle=True, keep_separator="|||").keys() == {"a b, c, d", "a b, d, c"}
    assert seen("a, b, c").keys() == {"a, b, c"}


def test_tags_and_captions_are_dropped_as_often_as_said() -> None:
    found = seen("a, b", 2000, tag_dropout=0.25, keep_tokens=1)
    assert found.keys() == {"a, b", "a"} and 400 < found["a"] < 600
    assert 400 < seen("a, b", 2000, dropout=0.25)[""] < 600


def test_wildcards_choose_lines_and_alternatives() -> None:
    found = seen("a {red|blue} hat\na {{tall|small}|odd} cat", wildcards=True)
    assert found.keys() == {"a red hat", "a blue hat", "a tall cat", "a small cat", "a odd cat"}
    assert 150 < sum(num for text, num in found.items() if "hat" in text) < 250
    assert seen("a {red|blue} hat\nb").keys() == {"a {red|blue} hat"}
    assert seen("cat", prefix="art of", suffix="in oil").keys() == {"art of cat in oil"}


@pytest.fixture
def described(tmp_path: Path) -> Path:
    for name in ("subject", "others", "edges"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    path = tmp_path / "set.toml"
    path.write_text(
        """
        [general]
        shuffle_caption = true
        caption_extension = ".caption"
        [[datasets]]
        resolution = [64, 96]
        batch_size = 3
        keep_tokens = 1
        [[datasets.subsets]]
        image_dir = "subject"
        num_repeats = 5
        class_tokens = "sks thing"
        flip_aug = true
        conditioning_data_dir = "edges"
        [[datasets.subsets]]
        image_dir = "others"
        is_reg = true
        keep_tokens = 2
        caption_dropout_rate = 0.5
        """
    )
    return path


def test_what_stands_above_holds_below(described: Path) -> None:
    subsets, rules, batch = read_kohya(described, BucketRules((32, 32)), 0.3)
    assert (rules.resolution, batch) == ((64, 96), 3)
    first, second = [read_examples(subset)[0] for subset in subsets]
    assert (first.repeats, first.weight, first.flip, first.captions) == (5, 1.0, True, ("sks thing",))
    assert (second.repeats, second.weight, second.flip, second.captions) == (1, 0.3, False, ("",))
    assert first.rules == CaptionRules(shuffle=True, keep_tokens=1)
    assert second.rules == CaptionRules(shuffle=True, keep_tokens=2, dropout=0.5)
    assert first.pictures["hint"].path == described.parent / "edges/0.png" and not second.pictures


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_repeats", "num_repeat", "'num_repeat' is not an option here; near: num_repeats"),
        ("= 5", "= 'a'", "num_repeats 'a' is not a whole number"),
        ("flip_aug = true", "flip_aug = 1", "flip_aug 1 is not true or false"),
        ('"sks thing"', "3", "class_tokens 3 is not a text"),
        ("0.5", "'x'", "caption_dropout_rate 'x' is not a number"),
        ("[64, 96]", "[64]", "resolution [64] is not a number, nor [width, height]"),
        ('"others"', "3", "a subset needs image_dir or metadata_file"),
    ],
)
def test_what_does_not_fit_is_named(described: Path, old: str, new: str, said: str) -> None:
    described.write_text(described.read_text().replace(old, new))
    with pytest.raises(DataError) as caught:
        read_kohya(described, BucketRules((32, 32)), 1.0)
    assert said in str(caught.value)
