"""Options that change how a picture is drawn: in the recipe, drawn again to the byte, checked."""

import json

import pytest
from PIL import Image

EFFECTS = {
    "guidance": (
        *("--cfg-scale", 9, "--no-cfg-batched", "--cfg-rescale", 0.5, "--guidance-start", 0.1),
        *("--guidance-end", 0.8, "--mimic-scale", 4, "--threshold-percentile", 0.99, "--perp-neg", 1),
        *("--sag-scale", 0.5, "--pag-scale", 2),
    ),
    "seamless": ("--seamless", "both"),
    "windows": ("--window", 32, "--window-overlap", 0.25, "--width", 64),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_picture_with_effects_is_drawn_again_to_the_byte(run, tiny, tmp_path, name):
    common = ("--negative-prompt", "rain", "--seed", 3, "--steps", 4, "--model", tiny)
    assert run("generate", "a taxi", *common, *EFFECTS[name], "--output", "a.png").err == ""
    assert run("replay", "a.png", "--model", tiny, "--output", "again.png").code == 0
    assert run("generate", "a taxi", *common, "--output", "plain.png").code == 0
    made, again, plain = (Image.open(tmp_path / f"{file}.png").tobytes() for file in ("a", "again", "plain"))
    assert made == again != plain
    request = json.loads(run("info", "a.png", "--json").out)["inkwash"]["request"]
    for flag, value in zip(EFFECTS[name], EFFECTS[name][1:], strict=False):
        if str(flag).startswith("--") and not str(value).startswith("--"):
            assert request[flag[2:].replace("-", "_")] == value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cfg-rescale", 2), "--cfg-rescale 2.0 is too large; the most is 1"),
        (
            ("--guidance-start", 0.5, "--guidance-end", 0.5),
            "--guidance-end: 0.5 is not above guidance_start 0.5",
        ),
        (("--pag-scale", "nan"), "--pag-scale nan"),
        (("--seamless", "z"), "--seamless 'z' is not one of 'none', 'x', 'y' or 'both'"),
        (("--window", 32, "--seamless", "x"), "seamless needs the whole picture in one window"),
        (("--vae-tile", 63), "vae_tile 63 is not a multiple of 8 from 64 on"),
        (("--device", "cuda:99", "--offload"), "device 'cuda:99' can't be used"),
        (("--threshold-percentile", 0), "--threshold-percentile 0.0 is too small; it must be above 0"),
    ],
)
def test_what_is_out_of_range_is_one_line(run, tiny, tmp_path, options, said):
    result = run("generate", "a taxi", "--seed", 1, *options, "--model", tiny, "--output", "a.png")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_what_saves_memory_draws_the_same_picture(run, tiny, tmp_path):
    common = ("a taxi", "--seed", 3, "--steps", 2, "--width", 64, "--model", tiny)
    assert run("generate", *common, "--output", "a.png").code == 0
    assert (
        run("generate", *common, "--vae-tile", 64, "--vae-slicing", "--offload", "--output", "b.png").err
        == ""
    )
    assert run("replay", "a.png", "--model", tiny, "--offload", "--output", "c.png").code == 0
    a, b, c = (Image.open(tmp_path / f"{name}.png").tobytes() for name in "abc")
    assert a == b == c
