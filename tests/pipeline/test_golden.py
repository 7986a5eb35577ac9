"""The shipped model: it opens, here and in diffusers, and draws what it drew when it was shipped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.pipeline.api import Pipeline
from inkwash.weights.bytes.paths import model_path

HERE = Path(__file__).parent
GOLDEN = {"taxi.png": ("a red taxi, noto style", 7), "rocket.png": ("a rocket, twemoji style", 3)}


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return inkwash.load("mini")


def psnr(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9)))


@pytest.mark.parametrize("name", GOLDEN)
def test_draws_what_it_drew(mini: Pipeline, name: str) -> None:
    prompt, seed = GOLDEN[name]
    image = mini.text_to_image(prompt, steps=10, cfg_scale=5, seed=seed, schedule="uniform")[0]
    assert image.size == (128, 128)
    assert psnr(image, Image.open(HERE / f"golden_{name}")) > 40


def test_prompt_and_style_matter(mini: Pipeline) -> None:
    """The same noise becomes something else by another name, and by another style."""
    prompts = ("a rocket, noto style", "a pizza, noto style", "a rocket, fluent flat style")
    first, *others = (mini.text_to_image(prompt, steps=6, seed=1)[0] for prompt in prompts)
    assert all(psnr(first, other) < 25 for other in others)


@pytest.mark.parametrize(("name", "most"), [("mini", 60_000_000), ("mini-inpainting", 55_000_000)])
def test_every_shard_is_small(name: str, most: int) -> None:
    sizes = [path.stat().st_size for path in model_path(name).rglob("*.safetensors")]
    assert max(sizes) <= 16_000_000
    assert sum(sizes) <= most


def test_inpainting_carries_the_background_on(mini: Pipeline) -> None:
    """Around what is drawn in a hole of a plain picture: its colour, where a model for text alone puts white."""
    image, mask = (
        Image.new(mode, (128, 128), colour) for mode, colour in (("RGB", (90, 160, 100)), ("L", 0))
    )
    mask.paste(255, (32, 32, 96, 96))
    filled = inkwash.load("mini-inpainting")
    far = {}
    for model in (mini, filled):
        made = model.inpaint(
            "a red apple, noto style", image, mask, seed=1, steps=12, strength=0.75, mask_blur=0
        )[0]
        assert made.crop((0, 0, 128, 32)).tobytes() == image.crop((0, 0, 128, 32)).tobytes()
        inside = np.asarray(made, dtype=float)[34:94, 34:94]
        corners = np.stack([inside[y, x] for y in (0, -1) for x in (0, -1)])
        far[model.name] = np.abs(corners - (90, 160, 100)).mean()
        assert (inside[20:40, 20:40].mean((0, 1)) - (90, 160, 100))[0] > 60  # something red is there
    assert 2 * far["mini-inpainting"] < far["mini"], far


def test_diffusers_draws_the_same(mini: Pipeline) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        model_path("mini"), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    tokens = mini.text_encoders[0].tokenizer(["a rocket, twemoji style"])
    theirs = pipe.tokenizer(["a rocket, twemoji style"], padding="max_length", return_tensors="pt").input_ids
    assert tokens == theirs.tolist()
    with torch.inference_mode():
        context = mini.text_encoders[0].model(theirs)[0]
        torch.testing.assert_close(context, pipe.text_encoder(theirs)[0], rtol=1e-4, atol=1e-4)
        x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([400.0])
        ours = mini.unet(x, t, context)
        torch.testing.assert_close(ours, pipe.unet(x, t, context).sample, rtol=1e-4, atol=1e-4)
        wanted = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
        torch.testing.assert_close(mini.autoencoder.decode(x), wanted, rtol=1e-4, atol=1e-4)
