"""Protocols say what is drawn, wholly or not at all."""

import json
from pathlib import Path

import pytest

from inkwash.metrics.protocol import chosen, read_prompts, read_protocol, shipped


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_protocol_is_whole(name: str) -> None:
    protocol = read_protocol(name)
    assert protocol.name == name and protocol.about.endswith(".")


def test_stable_diffusions_protocol_is_as_its_model_card_says() -> None:
    protocol = read_protocol("sd")
    assert (protocol.num_pictures, protocol.cfg_scales[0], protocol.cfg_scales[-1]) == (10_000, 1.5, 8.0)
    request = protocol.request_of(16, ("a (cat)", "a dog"), 3.0)
    assert (request.sampler, request.steps, request.cfg_scale) == ("plms", 50, 3.0)
    assert (request.seeds, request.prompts, request.prompt_language) == (
        [16, 17],
        ["a (cat)", "a dog"],
        "plain",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 1", "name 1 is not a text"),
        ('name = "a"', "num_pictures is missing"),
        ('name = "a"\nnum_pictures = 0', "num_pictures 0 is too small; the least is 1"),
        ('name = "a"\nnum_pictures = 1\nstep = 3', "step 3 is not an option here"),
        ('name = "a"\nnum_pictures = 1\n[request]\nsteps = 900', "steps 900 is too large; the most is 500"),
        ("name = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_protocol(str(tmp_path / "p.toml"))


def test_an_unknown_protocol_names_those_that_there_are() -> None:
    with pytest.raises(
        ValueError, match="no protocol 'coco': give a TOML file, or one of coco-30k, first-stage, mini"
    ):
        read_protocol("coco")


def test_prompts_of_lines_and_of_coco(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n\n a dog \n")
    assert read_prompts(tmp_path / "a.txt") == ["a cat", "a dog"]
    notes = [(7, 3, "third"), (2, 9, " first "), (7, 1, "second"), (2, 10, "not the first of its picture")]
    annotations = [{"image_id": image, "id": number, "caption": text} for image, number, text in notes]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    assert read_prompts(tmp_path / "a.json") == ["first", "second"]
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.txt").write_text("\n")
    for name in ("b.json", "c.txt", "none.txt"):
        with pytest.raises(ValueError, match=f"{name} holds no prompts"):
            read_prompts(tmp_path / name)


def test_more_pictures_contain_fewer() -> None:
    assert chosen(5, 100) == chosen(20, 100)[:5]
    assert sorted(chosen(100, 100)) == list(range(100))
    with pytest.raises(ValueError, match="101 pictures are to be compared, and there are 100"):
        chosen(101, 100)
