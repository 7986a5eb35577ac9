"""Models that see no text: nothing, a class, or a small picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.models.autoencoder import PixelConfig, Pixels
from inkwash.models.conditions import ClassConfig, ClassEmbedder
from inkwash.models.unet import UNet, UNetConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest
from tests.models.test_unet import randomise

SMALL = UNetConfig(
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    transformer_depth=(0, 1),
    context_dim=None,
    num_heads=2,
    norm_groups=4,
)


@pytest.fixture(scope="module")
def tiny_model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def without_words(model: Pipeline, config: UNetConfig, **parts) -> Pipeline:
    unet = UNet(config)
    randomise(unet)
    return replace(model, unet=unet.eval(), text_encoders=(), **parts)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_nothing_is_needed(tiny_model: Pipeline) -> None:
    model = without_words(tiny_model, SMALL)
    batch = model.text_to_image("", steps=3, seed=4, batch_size=2)
    assert np.abs(pixels(batch[1]) - pixels(model.text_to_image("", steps=3, seed=5)[0])).max() <= 1
    guided = model.text_to_image("", steps=3, seed=4, cfg_scale=9)[0]
    assert np.abs(pixels(guided) - pixels(batch[0])).max() <= 1
    with pytest.raises(ValueError, match="sees no text"):
        model.text_to_image("a taxi")
    with pytest.raises(ValueError, match="knows no classes"):
        model.text_to_image("", class_label=1)
    with pytest.raises(ValueError, match="knows words and not classes"):
        tiny_model.text_to_image("", class_label=1)


def test_pixels_are_drawn_as_they_are(tiny_model: Pipeline) -> None:
    config = replace(SMALL, in_channels=3, out_channels=3)
    model = without_words(tiny_model, config, autoencoder=Pixels(PixelConfig(3)))
    seen = []
    image = model.text_to_image("", steps=3, sampler="euler", width=40, on_step=seen.append)[0]
    assert image.size == (40, 32) and seen[-1].x.shape == (1, 3, 32, 40)
    wanted = ((seen[-1].x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    assert np.array_equal(pixels(image), wanted.int().numpy())


def test_a_class_guides_away_from_none(tiny_model: Pipeline) -> None:
    stage = ClassEmbedder(ClassConfig(num_classes=5, width=8))
    model = without_words(tiny_model, replace(SMALL, context_dim=8), cond_stage=stage)
    request = TextToImageRequest(prompt="", class_label=2, cfg_scale=3, batch_size=2)
    with torch.inference_mode():
        D, sigmas, x, _ = start(model, resolve(model, request))
        parts = [start(model, resolve(model, request).changed(class_label=k, cfg_scale=1))[0] for k in (2, 4)]
        cond, uncond = (part(x, sigmas[3]) for part in parts)
        torch.testing.assert_close(D(x, sigmas[3]), uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-4)
        assert (cond - uncond).abs().max() > 1e-3
    for label in (None, 5):
        with pytest.raises(ValueError, match="0 to 4"):
            model.text_to_image("", class_label=label)


def test_a_small_picture_is_seen_beside_x(tiny_model: Pipeline) -> None:
    config = replace(SMALL, in_channels=7, transformer_depth=(0, 0))
    model = without_words(tiny_model, config)
    rng = np.random.default_rng(0)
    first, other = (Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)) for _ in range(2))
    made = [model.upscale("", image, steps=2, seed=1)[0] for image in (first, other)]
    assert made[0].size == (40, 32) and not np.array_equal(pixels(made[0]), pixels(made[1]))
    assert "Noise level" not in made[0].info["parameters"]
    with pytest.raises(ValueError, match="is not told of noise"):
        model.upscale("", first, noise_level=20)
    with pytest.raises(ValueError, match="needs the small picture to enlarge"):
        model.text_to_image("")


def test_inpainting_without_words_sees_the_latent_before_the_mask(tiny_model: Pipeline) -> None:
    model = without_words(tiny_model, replace(SMALL, in_channels=9))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (8, 8, 24, 20))
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    made = model.inpaint("", image, mask, steps=2, mask_blur=0)[0]
    hook.remove()
    assert seen[0].shape[1] == 9 and seen[0][:, 8].unique().tolist() == [-1, 1]
    assert np.array_equal(pixels(made)[:8], pixels(image)[:8])
