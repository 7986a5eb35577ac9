"""`inkwash edit` and `inkwash inpaint`."""

import json

import numpy as np
import pytest
from PIL import Image

import inkwash


@pytest.fixture
def given(tmp_path):
    """A picture and a mask in the folder that the command runs in."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    return pixels


def test_edit_is_the_method(run, tiny, tmp_path, given):
    argv = [
        "in.png",
        "a taxi",
        "--seed",
        5,
        "--steps",
        4,
        "--strength",
        0.5,
        "--batch-size",
        2,
        "--model",
        tiny,
    ]
    result = run("edit", *argv, "--output", "out.png")
    assert (result.code, result.out, result.err) == (0, "out-1.png\nout-2.png\n", "")
    wanted = inkwash.load(tiny).image_to_image(
        "a taxi", Image.fromarray(given), seed=5, steps=4, strength=0.5, batch_size=2
    )
    for k, image in enumerate(wanted):
        with Image.open(tmp_path / f"out-{k + 1}.png") as saved:
            assert np.array_equal(saved, image)
            assert saved.info["parameters"] == image.info["parameters"]
            assert f"Seed: {5 + k}, Size: 48x32" in saved.info["parameters"]


def test_inpaint_keeps_what_is_black(run, tiny, tmp_path, given):
    argv = ["in.png", "mask.png", "a taxi", "--seed", 1, "--steps", 3, "--mask-blur", 0, "--only-masked"]
    result = run("inpaint", *argv, "--fill", "around", "--model", tiny, "--output", "out.png", "--json")
    report = json.loads(result.out)
    assert report["parameters"]["fill"] == "around" and report["images"] == [{"path": "out.png", "seed": 1}]
    with Image.open(tmp_path / "out.png") as saved:
        changed = (np.asarray(saved) != given).any(axis=2)
    assert changed[8:24, 8:24].mean() > 0.9
    assert changed.sum() == changed[8:24, 8:24].sum()


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ("edit in.png a --strength 1.2", 2, ["--strength 1.2", "1"]),
        ("edit in.png a --strength 0", 2, ["--strength 0", "0"]),
        ("edit in.png a --step-rule comfy", 2, ["--step-rule", "'comfy'", "a1111", "diffusers", "exact"]),
        ("edit none.png a", 1, ["none.png", "no picture"]),
        ("edit text.png a", 1, ["text.png", "no picture"]),
        ("edit in.png", 2, ["PROMPT"]),
        ("inpaint in.png text.png a", 1, ["text.png", "no picture"]),
        ("inpaint in.png mask.png a --fill solid", 2, ["--fill", "'solid'", "around", "nothing"]),
        ("inpaint in.png mask.png a --mask-blur nan", 2, ["--mask-blur nan", "finite"]),
        ("inpaint in.png mask.png a --padding -1", 2, ["--padding -1", "0"]),
    ],
)
def test_mistake_is_one_line_before_the_model_is_opened(
    run, tmp_path, monkeypatch, given, arguments, code, parts
):
    monkeypatch.setattr("inkwash.load", lambda *_, **__: pytest.fail("the model was opened"))
    (tmp_path / "text.png").write_text("no picture")
    before = sorted(tmp_path.iterdir())
    result = run(*arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    assert all(part in result.err for part in parts)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("size", "parts"), [((20, 20), ["20x20", "48x32"]), ((48, 32), ["black everywhere"])]
)
def test_a_mask_that_does_not_fit_is_one_line(run, tiny, tmp_path, given, size, parts):
    Image.new("L", size).save(tmp_path / "other.png")
    result = run("inpaint", "in.png", "other.png", "a", "--seed", 1, "--model", tiny, "--output", "out.png")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert all(part in result.err for part in parts)
    assert not (tmp_path / "out.png").exists()
