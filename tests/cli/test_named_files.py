"""Files that prompts name, from the command line: they are found, recorded in the picture, and needed for replay."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import read_parameters
from inkwash.weights.hashes import payload_hash


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for folder in ("loras", "embeddings", "wildcards"):
        (tmp_path / folder).mkdir()
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    torch.manual_seed(1)
    pair = {f"{key}.lora_down.weight": torch.randn(2, 8), f"{key}.lora_up.weight": torch.randn(8, 2)}
    save_file(pair, tmp_path / "loras/ink.safetensors")
    save_file({"emb_params": torch.randn(2, 8)}, tmp_path / "embeddings/blob.safetensors")
    (tmp_path / "wildcards/colour.txt").write_text("red\nblue\n")
    (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nframe,"{prompt}, framed",blur\n')
    return tmp_path


PLACES = ("--lora-dir", "loras", "--embeddings", "embeddings")


def fields_of(path: Path) -> tuple[str, str, dict[str, str]]:
    return parse_parameters(read_parameters(path) or "")


def same(a: Path, b: Path) -> bool:
    with Image.open(a) as first, Image.open(b) as second:
        return first.tobytes() == second.tobytes() and first.info["parameters"] == second.info["parameters"]


def test_the_picture_tells_its_files_and_is_drawn_again(run, tiny, files) -> None:
    common = ("--steps", 2, "--seed", 3, "--model", tiny)
    result = run(
        *(
            "generate",
            "a __colour__ {blob|big blob}<lora:ink:0.5>",
            "--negative-prompt",
            "__colour__",
            *common,
        ),
        *(*PLACES, "--wildcards", "wildcards", "--styles", "styles.csv", "--style", "frame"),
        *("--prompt-language", "a1111_no_norm", "--batch-size", 3, "--output", "a.png"),
    )
    assert (result.code, result.err) == (0, "")
    digest = payload_hash(files / "loras/ink.safetensors")[:12]
    for k in (1, 2, 3):
        prompt, negative, fields = fields_of(files / f"a-{k}.png")
        assert prompt.endswith("blob<lora:ink:0.5>, framed") and "__" not in prompt + negative
        assert negative in ("red, blur", "blue, blur")
        assert fields["Lora hashes"] == f"ink: {digest}" and fields["Emphasis"] == "No norm"
        assert len(fields["TI hashes"].removeprefix("blob: ")) == 12 and "Clip skip" not in fields
        result = run("replay", f"a-{k}.png", "--model", tiny, *PLACES, "--output", "again.png")
        assert (result.code, result.err) == (0, "")
        assert same(files / f"a-{k}.png", files / "again.png")
    recipe = json.loads(run("info", "a-1.png", "--json").out)["inkwash"]
    found = recipe["files"]
    assert found["loras"] == {"ink": digest} and list(found["embeddings"]) == ["blob"]
    assert recipe["request"]["styles"] == []

    result = run("replay", "a-1.png", "--model", tiny, "--output", "b.png")
    assert result.code == 2 and "there is no LoRA 'ink'" in result.err and not (files / "b.png").exists()
    save_file({"emb_params": torch.ones(2, 8)}, files / "embeddings/blob.safetensors")
    result = run("replay", "a-1.png", "--model", tiny, *PLACES, "--output", "b.png")
    assert result.code == 0 and "made with other files than these: {'blob':" in result.err


def test_a_lora_by_its_path_is_a_tag(run, tiny, files) -> None:
    common = ("--steps", 2, "--seed", 3, "--model", tiny)
    run("generate", "a cat", *common, "--lora", "loras/ink.safetensors:0.5", "--output", "a.png")
    run("generate", "a cat<lora:ink:0.5>", *common, "--lora-dir", "loras", "--output", "b.png")
    assert same(files / "a.png", files / "b.png")
    assert (
        run("replay", "a.png", "--model", tiny, "--lora", "loras/ink.safetensors", "--output", "c.png").code
        == 0
    )
    assert same(files / "a.png", files / "c.png")


def test_a1111_s_text_is_read_with_its_clip_skip_and_emphasis(run, tiny, files) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = "a (cat:1.3)<lora:ink:0.5>\nSteps: 2, Sampler: Euler, CFG scale: 4, Seed: 9, Size: 32x32, Clip skip: 1, "
    chunk = PngInfo()
    chunk.add_text("parameters", text + 'Emphasis: Ignore, Lora hashes: "ink: 0123456789ab", Model: other')
    Image.new("RGB", (32, 32)).save("theirs.png", pnginfo=chunk)
    result = run("replay", "theirs.png", "--model", tiny, "--lora-dir", "loras", "--output", "again.png")
    assert result.code == 0 and "made with other files than these: {'ink':" in result.err
    run("generate", "a (cat:1.3)<lora:ink:0.5>", "--steps", 2, "--sampler", "euler", "--cfg-scale", 4, "--seed", 9,
        "--width", 32, "--height", 32, "--model", tiny, "--lora-dir", "loras",
        "--prompt-language", "a1111_ignore", "--output", "wanted.png")  # fmt: skip
    with Image.open("again.png") as first, Image.open("wanted.png") as second:
        assert first.tobytes() == second.tobytes()


MISTAKES = {
    ("a <lora:inc:1>", *PLACES): (2, "there is no LoRA 'inc'; near: ink"),
    ("a <lora:ink:1>",): (2, "there is no LoRA 'ink'; there is none"),
    ("a <lora:ink:lots>", *PLACES): (2, "the strength 'lots' is not a number"),
    ("a <lora:text:1>", *PLACES): (1, "text.safetensors can't be read"),
    ("a <lora:other:1>", *PLACES): (1, "1 tensors not known"),
    ("odd", *PLACES): (1, "the embedding embeddings/odd.safetensors: its vectors have width 9"),
    ("a __color__", "--wildcards", "wildcards"): (2, "there is no wildcard 'color'; near: colour"),
    ("a", "--styles", "styles.csv", "--style", "frme"): (2, "there is no style 'frme'; near: frame"),
    ("a", "--styles", "bad.csv", "--style", "x"): (1, "the styles bad.csv have no column name"),
    ("a", "--style", "x"): (2, "there is no style 'x'; there is none"),
    ("a", "--lora-dir", "nowhere"): (1, "nowhere: there is no such file or folder of loras"),
    ("a", "--clip-skip", "0"): (2, "--clip-skip 0"),
    ("a", "--clip-skip", "9"): (2, "clip skip 9 is not in 1 to 1"),
    ("a", "--clip-skip", "1.5"): (2, "'1.5' is not a whole number"),
    ("a", "--prompt-language", "b1111"): (2, "--prompt-language: 'b1111' is not one of a1111, a1111_ignore"),
    ("BREAK a " * 20,): (2, "the prompt has 21 chunks of 75 tokens; at most 20"),
    ("a", "--lora", "loras/ink.safetensors", "--prompt-language", "plain"): (2, "--lora"),
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_said_and_nothing_is_written(run, tiny, files, arguments) -> None:
    (files / "loras/text.safetensors").write_text("no")
    save_file({"lora_unet_nothing.lora_down.weight": torch.zeros(1, 1)}, files / "loras/other.safetensors")
    save_file({"emb_params": torch.zeros(2, 9)}, files / "embeddings/odd.safetensors")
    (files / "bad.csv").write_text("a,b\n")
    code, message = MISTAKES[arguments]
    result = run("generate", *arguments, "--seed", 1, "--steps", 1, "--model", tiny, "--output", "a.png")
    assert (result.code, result.out) == (code, "") and message in result.err
    assert result.err.count("\n") <= 2 and not (files / "a.png").exists()


@pytest.mark.parametrize(
    ("prompt", "unread"),
    [("a (cat", "'(' at character 3"), ("[a:b:0.5", "'[' at character 1"), ("a cat]", "']' at character 6")],
)
def test_a_prompt_that_is_taken_as_it_is_written_is_drawn_and_said(run, tiny, files, prompt, unread) -> None:
    for _ in range(2):  # once each time
        result = run("generate", prompt, "--seed", 1, "--steps", 1, "--model", tiny, "--output", "a.png")
        assert (result.code, result.out) == (0, "a.png\n")
        assert result.err == f"inkwash: the prompt is taken as it is written: {unread} has no partner\n"
