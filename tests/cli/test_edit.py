"""`inkwash edit` and `inkwash inpaint`."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import inkwash
from tests.support.tiny_models import LABELS, variants


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
        ("edit none.png a", 1, ["none.png", "not a readable picture"]),
        ("edit text.png a", 1, ["text.png", "not a readable picture"]),
        ("edit in.png", 2, ["PROMPT"]),
        ("inpaint in.png text.png a", 1, ["text.png", "not a readable picture"]),
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


def test_outpaint_keeps_the_picture(run, tiny, tmp_path, given):
    argv = ["in.png", "a", "--left", 6, "--bottom", 10, "--steps", 2, "--seed", 1, "--model", tiny]
    assert run("outpaint", *argv, "--output", "out.png") == (0, "out.png\n", "")
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.size == (54, 42)
        assert np.array_equal(np.asarray(saved)[:32, 6:], given)
        assert "Denoising strength: 0.8" in saved.info["parameters"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ("outpaint in.png a --seed 1", 2, ["left, top, right and bottom are 0"]),
        ("outpaint in.png a --left -3 --seed 1", 2, ["--left -3"]),
        ("depth in.png a --seed 1", 2, ["--depth", "--depth-model"]),
        ("depth in.png a --seed 1 --depth-model none", 1, ["none", "no network for depth"]),
        ("instruct in.png a --seed 1 --image-cfg-scale nan", 2, ["--image-cfg-scale nan"]),
        ("upscale in.png --seed 1 --noise-level 1000", 2, ["--noise-level 1000", "999"]),
        ("upscale bomb.png --seed 1", 1, ["bomb.png", "not a readable picture"]),
        ("info bomb.png", 1, ["bomb.png", "not a readable picture"]),
        ("edit bomb.png a --seed 1", 1, ["bomb.png", "not a readable picture"]),
        ("inpaint in.png bomb.png a --seed 1", 1, ["bomb.png", "not a readable picture"]),
        ("depth in.png a --depth bomb.png --seed 1", 1, ["bomb.png", "not a readable picture"]),
        ("semantic bomb.png --seed 1", 1, ["bomb.png", "not a readable picture"]),
        ("replay bomb.png", 1, ["bomb.png", "not a readable picture"]),
        ("semantic in.png --seed 1", 1, ["in.png", "palette", "mode RGB"]),
        ("layout a --seed 1", 2, ["--box"]),
        ("layout a --box 0,0,2,1=b --seed 1", 2, ["'0,0,2,1=b' is not a box", "x0,y0,x1,y1=what"]),
        ("layout --box 0,0,1,1=dgo --categories names.txt --seed 1", 2, ["no category 'dgo'", "near: dog"]),
        ("layout --box 0,0,1,1=a --categories none.txt --seed 1", 1, ["none.txt"]),
        ("layout --box 0,0,1,1=a --categories in.png --seed 1", 1, ["in.png", "not text in UTF-8"]),
        ("generate a --grid steps", 2, ["'steps' is not an axis"]),
        ("generate a --seed 1 --grid steps=1,x", 2, ["--steps 'x'"]),
        ("generate a --seed 1 --hires 9", 2, ["--hires 9", "8"]),
        ("generate a --seed 1 --hires-upscaler no", 2, ["--hires-upscaler", "'no'", "lanczos"]),
        ("generate a --seed 1 --original-size 20", 2, ["--original-size"]),
        ("generate a --seed 1 --variation-strength 1.2", 2, ["--variation-strength 1.2"]),
        ("generate a --seed 1 --refiner-switch-at 0.5 --refiner-strength 0.5", 2, ["not both"]),
    ],
)
def test_mistakes_of_the_other_verbs(run, tmp_path, monkeypatch, given, arguments, code, parts):
    monkeypatch.setattr("inkwash.load", lambda *_, **__: pytest.fail("the model was opened"))
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks
    ]
    (tmp_path / "names.txt").write_text("person\ndog\n")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))
    before = sorted(tmp_path.iterdir())
    result = run(*arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1), result.err
    assert all(part in result.err for part in parts), result.err
    assert sorted(tmp_path.iterdir()) == before


OTHERS = [
    "depth in.png a --depth mask.png",
    "instruct in.png a",
    "upscale in.png",
    "layout a --box 0,0,1,1=b",
    "semantic mask.png",
]


@pytest.mark.parametrize("verb", OTHERS)
def test_a_model_of_another_kind_says_so(run, tiny, tmp_path, given, verb):
    result = run(*verb.split(), "--seed", 1, "--model", tiny, "--output", "out.png")
    assert (result.code, result.err.count("\n")) == (2, 1) and "tiny" in result.err
    assert not (tmp_path / "out.png").exists()


def test_layout_and_semantic_are_the_methods(run, tiny, tmp_path, monkeypatch):
    models = variants(tiny)
    for variant, argv, wanted in (
        ("categories", ["--box", "0,0,1,0.5=dog", "--box", "0,0.5,1,1=0", "--categories", "names.txt"],
         lambda m, **o: m.layout_to_image(["0,0,1,0.5=1", (0, 0.5, 1, 1, 0)], **o)),
        ("layout", ["a", "--box", "0,0,1,0.5=a dog, red"],
         lambda m, **o: m.layout_to_image(["0,0,1,0.5=a dog, red"], "a", **o)),
        ("semantic", ["labels.png"], lambda m, **o: m.semantic_to_image(LABELS, **o)),
    ):  # fmt: skip
        monkeypatch.setattr("inkwash.load", lambda *_, model=models[variant], **__: model)
        (tmp_path / "names.txt").write_text("person\ndog\n")
        LABELS.save(tmp_path / "labels.png")
        verb = "semantic" if variant == "semantic" else "layout"
        assert run(verb, *argv, "--seed", 3, "--steps", 2, "--output", "a.png") == (0, "a.png\n", "")
        image = wanted(models[variant], seed=3, steps=2)[0]
        with Image.open(tmp_path / "a.png") as saved:
            assert np.array_equal(saved, image)
        assert run("replay", "a.png", "--model", "x", "--output", "b.png") == (0, "b.png\n", "")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_grid_is_its_pictures_and_a_sheet(run, tiny, tmp_path):
    argv = ["generate", "a taxi", "--seed", 3, "--model", tiny, "--grid", "steps=1,2", "cfg_scale=1,4"]
    assert run(*argv, "--output", "g.png").out.split() == [
        "g-1.png",
        "g-2.png",
        "g-3.png",
        "g-4.png",
        "g.png",
    ]
    wanted = inkwash.load(tiny).text_to_image("a taxi", seed=3, steps=2, cfg_scale=4)[0]
    with Image.open(tmp_path / "g-4.png") as single, Image.open(tmp_path / "g.png") as made:
        assert np.array_equal(single, wanted) and single.info["parameters"] == wanted.info["parameters"]
        assert made.width >= 2 * 128 and "Script: X/Y/Z plot" in made.info["parameters"]
    report = json.loads(run(*argv, "--json").out)
    assert report["images"][-1]["path"] == "a-taxi-3-grid.png" and len(report["images"]) == 5


def test_replay_takes_the_refiner_too(run, tiny, tmp_path):
    argv = ["generate", "a taxi", "--seed", 3, "--steps", 3, "--hires", 1.5, "--variation-strength", 0.2]
    argv += ["--variation-seed", 4, "--batch-size", 2, "--model", tiny]
    assert run(*argv, "--refiner", tiny, "--refiner-strength", 0.5, "--output", "a.png").code == 0
    assert run("replay", "a-2.png", "--model", tiny, "--output", "b.png").code == 2
    again = run("replay", "a-2.png", "--model", tiny, "--refiner", tiny, "--output", "b.png")
    assert again == (0, "b.png\n", "")
    assert (tmp_path / "a-2.png").read_bytes() == (tmp_path / "b.png").read_bytes()
