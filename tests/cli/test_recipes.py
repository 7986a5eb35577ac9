"""`inkwash info` and `inkwash replay`."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def test_a_picture_is_drawn_again_to_the_byte(run, tiny, tmp_path):
    """Also one of a batch, whose arithmetic rounds in its own way."""
    run("generate", "a (taxi:1.2)", "--seed", 3, "--steps", 4, "--batch-size", 3, "--sampler", "dpmpp_2m_sde",
        "--negative-prompt", "rain", "--model", tiny, "--output", "a.png")  # fmt: skip
    for k in range(1, 4):
        result = run("replay", f"a-{k}.png", "--model", tiny, "--output", "again.png")
        assert (result.code, result.out, result.err) == (0, "again.png\n", "")
        with Image.open(tmp_path / f"a-{k}.png") as first, Image.open(tmp_path / "again.png") as second:
            assert first.tobytes() == second.tobytes()
            assert first.info["parameters"] == second.info["parameters"]


def test_a_picture_of_another_program_is_drawn_by_its_text(run, tiny, tmp_path):
    text = "a taxi\nNegative prompt: rain\nSteps: 3, Sampler: Euler a, Schedule type: Karras, CFG scale: 4, "
    chunk = PngInfo()
    chunk.add_text("parameters", text + "Seed: 9, Size: 48x32, Model hash: 0123456789, Model: other")
    Image.new("RGB", (48, 32)).save(tmp_path / "theirs.png", pnginfo=chunk)
    result = run("replay", "theirs.png", "--output", "again.png")
    assert result.code == 2 and "made with other" in result.err and "--model" in result.err
    result = run("replay", "theirs.png", "--model", tiny, "--output", "again.png")
    assert result.code == 0 and "made with model other 0123456789" in result.err
    run("generate", "a taxi", "--negative-prompt", "rain", "--steps", 3, "--sampler", "euler_ancestral",
        "--schedule", "karras", "--cfg-scale", 4, "--seed", 9, "--width", 48, "--height", 32, "--model", tiny,
        "--output", "wanted.png")  # fmt: skip
    with Image.open(tmp_path / "again.png") as first, Image.open(tmp_path / "wanted.png") as second:
        assert first.tobytes() == second.tobytes()


def test_info_prints_what_is_there(run, tiny, tmp_path):
    run("generate", "a taxi", "--seed", 3, "--steps", 2, "--model", tiny, "--output", "a.png")
    result = run("info", "a.png")
    assert result.out.startswith("a taxi\nSteps: 2, Sampler: DPM++ 2M,")
    report = json.loads(run("info", "a.png", "--json").out)
    assert report["inkwash"]["task"] == "text_to_image"
    assert report["inkwash"]["request"]["steps"] == 2
    assert list(report) == ["inkwash", "parameters"]


@pytest.mark.parametrize(
    ("key", "name"), [("prompt", "comfyui"), ("invokeai_metadata", "invokeai"), ("sd-metadata", "invokeai")]
)
def test_info_reads_other_programs_json(run, tmp_path, key, name):
    chunk = PngInfo()
    chunk.add_text(key, '{"3": {"class_type": "KSampler"}}')
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunk)
    assert json.loads(run("info", "theirs.png", "--json").out) == {name: {"3": {"class_type": "KSampler"}}}
    assert "KSampler" in run("info", "theirs.png").out


def test_what_cannot_be_drawn_again_is_said(run, tiny, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    chunk = PngInfo()
    chunk.add_text("parameters", "a taxi\nSteps: many, Sampler: Euler, Seed: 1, Size: 32x32")
    Image.new("RGB", (32, 32)).save(tmp_path / "odd.png", pnginfo=chunk)
    for name, part in (
        ("empty.png", "does not say how it was made"),
        ("text.png", "is not a readable picture"),
        ("none.png", "is not a readable picture"),
        ("odd.png", "Steps 'many' is not a whole number"),
    ):
        result = run("replay", name, "--model", tiny, "--output", "again.png")
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert name in result.err and part in result.err
    assert not (tmp_path / "again.png").exists()


def test_what_was_made_from_pictures_is_drawn_again_with_them(run, tiny, tmp_path):
    """They are found beside it by their names, or given; others are refused."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    mask = Image.new("L", (48, 40))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(tmp_path / "hole.png")
    argv = ["in.png", "hole.png", "a taxi", "--seed", 3, "--steps", 3, "--batch-size", 2, "--model", tiny]
    assert run("inpaint", *argv, "--only-masked", "--output", "a.png").code == 0
    again = ["replay", "a-2.png", "--model", tiny, "--output", "b.png"]
    assert run(*again) == (0, "b.png\n", "")
    assert (tmp_path / "a-2.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    (tmp_path / "b.png").unlink()
    (tmp_path / "in.png").rename(tmp_path / "elsewhere.png")
    result = run(*again)
    assert (result.code, result.out) == (2, "")
    assert result.err == "inkwash: a-2.png was made from the image in.png; give its path by --image\n"
    assert run(*again, "--image", "none.png").code == 2
    result = run(*again, "--image", "hole.png")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "a-2.png can't be drawn again from hole.png: this image is not the one" in result.err
    result = run(*again, "--image", "elsewhere.png", "--labels", "hole.png")
    assert (result.code, result.err) == (2, "inkwash: --labels hole.png: a-2.png was made without one\n")
    assert not (tmp_path / "b.png").exists()
    assert run(*again, "--image", "elsewhere.png", "--mask", "hole.png").code == 0
    assert (tmp_path / "a-2.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_recipe_names_no_file_elsewhere(run, tiny, tmp_path):
    """A recorded file name is looked for beside the picture alone."""
    (tmp_path / "private").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "private/in.png")
    run("edit", "private/in.png", "a", "--seed", 1, "--steps", 1, "--model", tiny, "--output", "a.png")
    with Image.open(tmp_path / "a.png") as image:
        recipe = json.loads(image.info["inkwash"])
        recipe["given"]["image"]["name"] = "private/in.png"
        chunk = PngInfo()
        chunk.add_text("inkwash", json.dumps(recipe))
        image.save(tmp_path / "b.png", pnginfo=chunk)
    result = run("replay", "b.png", "--model", tiny, "--output", "c.png")
    assert (result.code, result.err.count("\n")) == (2, 1) and not (tmp_path / "c.png").exists()


def test_a_picture_knows_that_it_was_computed_in_eight_bits(run, tmp_path, monkeypatch):
    monkeypatch.setattr("inkwash.nn.int8.amx", lambda: False)  # with which a measurement would decide
    drawn = ("generate", "a taxi", "--seed", 3, "--steps", 2, "--width", 64, "--height", 64)
    run(*drawn, "--int8", "--output", "a.png")
    run(*drawn, "--output", "exact.png")
    assert run("replay", "a.png", "--output", "again.png").code == 0
    a, exact, again = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("a", "exact", "again"))
    assert a == again != exact
    refused = run(*drawn, "--int8", "--compile", "--output", "b.png")
    assert refused.code == 2 and "int8 is for drawing on a CPU" in refused.err
    assert not (tmp_path / "b.png").exists()


def test_a_picture_knows_the_type_it_was_computed_in(run, tiny, tmp_path):
    run(
        "generate",
        "a taxi",
        "--seed",
        3,
        "--steps",
        4,
        "--model",
        tiny,
        "--dtype",
        "bf16",
        "--output",
        "a.png",
    )
    run("generate", "a taxi", "--seed", 3, "--steps", 4, "--model", tiny, "--output", "exact.png")
    assert run("replay", "a.png", "--model", tiny, "--output", "again.png").code == 0
    first, again, exact = (
        np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=int) for name in ("a", "again", "exact")
    )
    assert (first == again).all()
    assert np.abs(first - exact).max() > 0 and np.abs(first - exact).mean() < 3
    result = run("generate", "a taxi", "--model", tiny, "--dtype", "fp8")
    assert result.code == 2 and "fp8" in result.err and "bf16" in result.err
