"""Comments, tags with names of any letters, styles as A1111 reads them, and files of one name."""

from pathlib import Path

import pytest

from inkwash.prompts.comments import without_comments, without_escapes
from inkwash.prompts.styles import Style, read_styles
from inkwash.prompts.tags import extract_tags, written
from inkwash.prompts.wildcards import expand
from inkwash.weights.bytes.paths import find_named, named_files


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a red apple # or green", "a red apple \n"),
        ("# first\na book\n# last", "\na book\n"),
        ("a\n#b\nc", "a\nc"),
        (r"the number \#1 # and more", "the number \\#1 \n"),
        ("a <lora:c#sharp:1> b", "a <lora:c#sharp:1> b"),
        ("no comment", "no comment"),
    ],
)
def test_comments_go_as_a1111_takes_them(text: str, wanted: str) -> None:
    assert without_comments(text) == wanted
    assert without_comments(wanted) == wanted  # so that a recorded prompt is drawn again


def test_an_escaped_hash_sign_is_one() -> None:
    assert without_escapes(without_comments(r"the number \#1")) == "the number #1"


@pytest.mark.parametrize(
    "name",
    ["a:b", "<x>", "{a|b}", "style__pony__v1", "50%25", "a, b", "c#", "[x](y)", r"back\slash", "木 é", "a=b"],
)
def test_any_name_can_stand_in_a_tag(name: str, tmp_path: Path) -> None:
    prompt = f"a __colour__ apple<lora:{written(name)}:0.5>"
    (tmp_path / "colour.txt").write_text("red")
    expanded = without_comments(expand(prompt, 1, named_files([tmp_path], [".txt"])))
    text, (tag,) = extract_tags(expanded)
    assert text == "a red apple" and tag.te == 0.5
    (tmp_path / f"{name}.safetensors").write_text("")
    found = find_named("LoRA", tag.name, named_files([tmp_path], [".safetensors"]))
    assert found.name == f"{name}.safetensors"


def test_a_choice_between_loras_is_still_one() -> None:
    seen = {expand("{<lora:a__b__c:1>|<lora:d:1>} x", seed, {}) for seed in range(20)}
    assert seen == {"<lora:a__b__c:1> x", "<lora:d:1> x"}


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for folder in "AB":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.safetensors").write_text(folder)
    (tmp_path / "other.safetensors").write_text("")
    inside = named_files([tmp_path], [".safetensors"])
    given = named_files([tmp_path / "A/same.safetensors", tmp_path / "B/same.safetensors"], [".safetensors"])
    for found in (inside, given):
        with pytest.raises(
            ValueError, match=r"several files of the LoRA 'same': .*A/same\.safetensors and .*B/same"
        ):
            find_named("LoRA", "same", found)
    assert find_named("LoRA", "B/same", inside).read_text() == "B"
    assert find_named("LoRA", (tmp_path / "B/same").as_posix(), given).read_text() == "B"
    assert find_named("LoRA", "Other", inside).name == "other.safetensors"
    twice = named_files([tmp_path / "other.safetensors", tmp_path], [".safetensors"])
    assert find_named("LoRA", "other", twice).name == "other.safetensors"  # one file, given and found


@pytest.mark.parametrize(
    "content",
    [
        'name,prompt,negative_prompt\nnoto, "{prompt}, red, noto style", "blue, text"\n',
        'name, prompt, negative_prompt\nnoto,"{prompt}, red, noto style","blue, text"\n',
        '\ufeffname,text,negative_prompt\n noto ,"{prompt}, red, noto style","blue, text"\n,,\n',
    ],
)
def test_styles_are_read_as_a1111_reads_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content, "utf-8")
    assert read_styles([tmp_path / "a.csv"]) == {"noto": Style("{prompt}, red, noto style", "blue, text")}


def test_a_style_needs_no_negative_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,prompt\nnoto,noto style\n")
    assert read_styles([tmp_path / "a.csv"]) == {"noto": Style("noto style", "")}
