"""`inkwash upscale` by a pixel upscaler, and second passes by one."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from inkwash.models.compact import CompactConfig
from inkwash.pipeline.record.metadata import read_parameters, read_recipes
from tests.support.upscalers import network


@pytest.fixture
def small(tmp_path):
    """An upscaler in the folder that the command runs in."""
    (tmp_path / "models").mkdir()
    save_file(network(CompactConfig(8, 3)).state_dict(), tmp_path / "models" / "small.safetensors")
    return "models/small.safetensors"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")


def test_a_picture_is_enlarged_beside_it_and_drawn_again_to_the_byte(run, tmp_path, small, photo):
    done = run("upscale", "photo.png", "--upscaler", small, "--factor", 2.5, "--tile", 128)
    assert (done.code, done.out, done.err) == (0, "photo-upscaled.png\n", "")
    made = tmp_path / "photo-upscaled.png"
    assert (Image.open(made).size, Image.open(made).mode) == ((100, 60), "RGBA")
    assert read_parameters(made) == "Size: 40x24, Postprocess upscale by: 2.5, Postprocess upscaler: small"
    assert run("replay", made, "--output", "again.png").err.strip().endswith("give its path by --model")
    assert run("replay", made, "--model", small, "--output", "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == made.read_bytes()


def test_a_drawn_picture_keeps_what_it_says(run, tmp_path, tiny, small):
    assert (
        run("generate", "a fox", "--model", tiny, "--seed", 3, "--steps", 2, "--output", "fox.png").code == 0
    )
    done = run("upscale", "fox.png", "--upscaler", small, "--output", "large.webp", "--json")
    assert json.loads(done.out)["model"]["name"] == "small"
    text = read_parameters(tmp_path / "large.webp")
    assert text.startswith("a fox\nSteps: 2,") and text.endswith("Postprocess upscaler: small")


def test_a_second_pass_by_an_upscaler_is_drawn_again(run, tmp_path, tiny, small):
    argv = ["a fox", "--model", tiny, "--seed", 3, "--steps", 2, "--hires", 2, "--hires-strength", 0.5]
    assert run("generate", *argv, "--hires-upscaler", small, "--output", "fox.png").code == 0
    assert "Hires upscaler: small" in read_parameters(tmp_path / "fox.png")
    assert small not in json.dumps(read_recipes(tmp_path / "fox.png"))  # folders are nobody's business
    replayed = ["replay", "fox.png", "--model", tiny, "--output", "again.png"]
    assert run(*replayed).err.strip().endswith("give its path by --hires-upscaler")
    assert run(*replayed, "--hires-upscaler", small).code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "fox.png").read_bytes()
    (tmp_path / "small.safetensors").write_bytes((tmp_path / small).read_bytes())
    assert run(*replayed).code == 0  # beside the picture


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ("upscale photo.png --upscaler no.pth", 1, ["no.pth"]),
        ("upscale photo.png --upscaler photo.png", 1, ["photo.png", "a picture"]),
        ("upscale no.png --upscaler models/small.safetensors", 1, ["no.png"]),
        ("upscale photo.png --upscaler models/small.safetensors --factor 0", 2, ["--factor"]),
        ("upscale photo.png --upscaler models/small.safetensors --tile 8", 2, ["--tile"]),
        ("upscale photo.png --upscaler models/small.safetensors --batch-size 2", 2, ["batch_size", "factor"]),
        ("upscale photo.png --seed 1 --factor 2", 2, ["mini does not"]),
        ("generate a --seed 1 --hires 2 --hires-upscaler photo.png", 2, ["--hires-upscaler", ".pth"]),
        ("generate a --seed 1 --hires 2 --hires-upscaler no.pth --steps 1", 1, ["no.pth"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run, small, photo, argv, code, said):
    done = run(*argv.split())
    assert done.code == code and len(done.err.strip().splitlines()) == 1
    assert all(word in done.err for word in said), done.err
