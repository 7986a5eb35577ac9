"""Grey masks: each pixel is drawn from a noise level of its own on (Differential Diffusion), or blended in each step."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import from_own_level, keep_known
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, ending, sqrt_linear_betas
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.record.metadata import read_parameters, save_image
from tests.support.tiny_models import PICTURE, variants

SD = NoiseSchedule.from_betas(sqrt_linear_betas())
SIZE = PICTURE.size
HARD = Image.new("L", SIZE)
HARD.paste(255, (8, 6, 26, 20))
RAMP = Image.fromarray(np.tile(np.linspace(0, 255, SIZE[0]).round().astype(np.uint8), (SIZE[1], 1)))


@pytest.fixture(scope="module")
def models(tiny: Path) -> Mapping[str, Pipeline]:
    return variants(tiny)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def alike(image: Image.Image, other: Image.Image) -> bool:
    return image.tobytes() == other.tobytes()


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("kind", ["plain", "inpainting"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_a_black_and_white_mask_is_ordinary_inpainting(
    models: Mapping[str, Pipeline], kind: str, strength: float, sampler: str
) -> None:
    options = dict(mask_blur=0, strength=strength, sampler=sampler, steps=5, fill="around", seed=3)
    soft, hard = (
        models[kind].inpaint("a", PICTURE, HARD, soft_mask=on, **options)[0] for on in (True, False)
    )
    assert alike(soft, hard)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_black_stays_to_the_byte_and_more_white_is_more_change(
    models: Mapping[str, Pipeline], sampler: str
) -> None:
    mask = RAMP.copy()
    mask.paste(0, (0, 0, SIZE[0], 8))
    made = models["plain"].inpaint("a", PICTURE, mask, soft_mask=True, steps=6, sampler=sampler, mask_blur=0)[
        0
    ]
    black = pixels(mask) == 0
    assert (pixels(made)[black] == pixels(PICTURE)[black]).all()
    assert np.abs(pixels(made) - pixels(PICTURE))[8:, -8:].mean() > 10


def test_a_black_mask_is_refused_and_a_dark_one_is_not(models: Mapping[str, Pipeline]) -> None:
    options = dict(soft_mask=True, steps=4)
    with pytest.raises(ValueError, match="the mask is black everywhere, so there is nothing to draw"):
        models["plain"].inpaint("a", PICTURE, Image.new("L", SIZE), **options)
    dark = Image.new("L", SIZE, 100)
    assert not alike(models["plain"].inpaint("a", PICTURE, dark, **options)[0], PICTURE)
    with pytest.raises(ValueError, match=r"black everywhere \(nothing is half white\)"):
        models["plain"].inpaint("a", PICTURE, dark, steps=4)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_white_mask_is_image_to_image(models: Mapping[str, Pipeline], strength: float) -> None:
    options = dict(strength=strength, steps=6, seed=3, sampler="dpmpp_2m")
    made = models["plain"].inpaint("a", PICTURE, Image.new("L", SIZE, 255), soft_mask=True, **options)[0]
    assert alike(made, models["plain"].image_to_image("a", PICTURE, **options)[0])


@pytest.mark.parametrize("grey", [64, 128, 230])
def test_one_grey_is_image_to_image_of_that_strength(models: Mapping[str, Pipeline], grey: int) -> None:
    options = dict(steps=8, seed=3, sampler="euler")
    made = models["plain"].inpaint("a", PICTURE, Image.new("L", SIZE, grey), soft_mask=True, **options)[0]
    wanted = models["plain"].image_to_image("a", PICTURE, strength=grey / 255, **options)[0]
    assert np.abs(pixels(made) - pixels(wanted)).max() <= 1
    other = models["plain"].image_to_image("a", PICTURE, strength=grey / 255 - 1 / 8, **options)[0]
    assert np.abs(pixels(made) - pixels(other)).max() > 1


def test_what_a_model_for_inpainting_sees_does_not_hold_the_grey_part(
    models: Mapping[str, Pipeline],
) -> None:
    options = dict(steps=6, mask_blur=0)
    soft, hard = (
        models["inpainting"].inpaint("a", PICTURE, RAMP, soft_mask=on, **options)[0] for on in (1, 0)
    )
    change, whole = (np.abs(pixels(made) - pixels(PICTURE)) for made in (soft, hard))
    assert change[:, 24:30].mean() != whole[:, 24:30].mean() and change[:, 24:30].mean() > 0


def test_the_recipe_says_it(models: Mapping[str, Pipeline], tmp_path: Path) -> None:
    for on in (True, False):
        (made,) = models["plain"].inpaint("a", PICTURE, RAMP, soft_mask=on, steps=2)
        save_image(made, tmp_path / "made.png")
        assert ("Soft mask: True" in (read_parameters(tmp_path / "made.png") or "")) is on


# ---------------------------------------------------------------- the mask of each noise level


def test_a_pixel_begins_at_its_share_of_the_steps() -> None:
    sigmas = ending(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    mask = from_own_level(torch.tensor([0.0, 0.25, 0.49, 0.75, 1.0]).view(1, 1, 1, 5), sigmas)
    drawn = {sigma: mask(torch.tensor(sigma)).flatten().tolist() for sigma in (8.0, 4.0, 2.0, 1.0)}
    assert drawn == {8: [0, 0, 0, 1, 1], 4: [0, 0, 0, 1, 1], 2: [0, 1, 1, 1, 1], 1: [0, 1, 1, 1, 1]}
    assert torch.equal(mask(torch.tensor(2.0 * (1 + 1e-9))), mask(torch.tensor(2.0)))  # by a logarithm
    assert torch.equal(mask(torch.tensor(2.5)), mask(torch.tensor(4.0)))  # between two steps
    assert mask(torch.tensor([8.0, 1.0])).shape == (2, 1, 1, 5)
    assert torch.equal(mask(torch.tensor(20.0)), mask(torch.tensor(8.0)))  # churned


def test_it_is_diffusers_formula() -> None:
    """The loop of diffusers' community pipelines, by their DDIM: the map says what to keep, and each step lays the
    original with that step's noise over what the map still keeps."""
    num, shape = 10, (1, 4, 8, 8)
    latent, noise = (
        torch.randn(shape, generator=torch.Generator().manual_seed(k)).double() for k in range(2)
    )
    kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2)).double() / 6
    strengths = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1)) * (1 + t.view(-1, 1, 1, 1) / 1000)

    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, timestep_spacing="trailing"
    )  # fmt: skip
    scheduler.set_timesteps(num)
    original = [scheduler.add_noise(latent, noise, t.view(1)) for t in scheduler.timesteps]
    kept = (1 - strengths) > (torch.arange(num) / num).view(-1, 1, 1, 1)
    x = original[0]
    for k, t in enumerate(scheduler.timesteps):
        if k:
            x = torch.where(kept[k], original[k], x)
        x = scheduler.step(network(x, t.double()), t, x).prev_sample

    sigmas = ending(SD.sigmas[scheduler.timesteps])
    denoise = precondition(lambda x, t: network(x, t.double()), "eps", SD)
    D = keep_known(lambda x, sigma: denoise(x, sigma, {}), latent, from_own_level(strengths, sigmas), noise)
    for step in SAMPLERS["euler"](D, latent + sigmas[0] * noise, sigmas):
        ours = step.x
    drawn = (strengths > 0).expand(shape)
    torch.testing.assert_close(ours[drawn], x[drawn], rtol=1e-5, atol=1e-5)
    assert torch.equal(
        ours[~drawn], latent[~drawn]
    )  # theirs are what the network makes of the last step's noise
    plain = (x - scheduler.add_noise(latent, noise, scheduler.timesteps[-1:])).abs()
    assert plain[drawn].mean() > 0.1


# ---------------------------------------------------------------- blended in each step, as ComfyUI's noise mask


def test_a_blend_is_comfyuis_formula() -> None:
    """ComfyUI's: the mask weighs what the network sees against the noised picture, and what it predicts against the
    picture; here in Euler's steps."""
    shape = (1, 4, 8, 8)
    latent, noise = (
        torch.randn(shape, generator=torch.Generator().manual_seed(k)).double() for k in range(2)
    )
    kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2)).double() / 6
    mask = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    sigmas = ending(torch.tensor([6.0, 3.0, 1.5, 0.5], dtype=torch.float64))

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1)) / (1 + sigma.view(-1, 1, 1, 1))

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        seen = x * mask + (latent + noise * sigma.view(-1, 1, 1, 1)) * (1 - mask)
        return network(seen, sigma) * mask + latent * (1 - mask)

    x = begun = latent + sigmas[0] * noise
    for sigma, following in pairwise(sigmas):
        x = x + (x - masked(x, sigma.expand(1))) / sigma * (following - sigma)
    for step in SAMPLERS["euler"](keep_known(network, latent, mask, noise), begun, sigmas):
        ours = step.x
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_the_blend_is_by_the_mask_at_the_latents_size(
    models: Mapping[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def spy(D: object, latent: Tensor, mask: Tensor, noise: Tensor) -> object:
        given.append(mask)
        return keep_known(D, latent, mask, noise)  # type: ignore[arg-type]

    monkeypatch.setattr("inkwash.pipeline.tasks.inpaint.keep_known", spy)
    for kind in ("plain", "inpainting"):
        (made,) = models[kind].inpaint(
            "a", PICTURE, RAMP, blend_mask=True, mask_blur=0, steps=3, strength=0.7
        )
        f = models[kind].autoencoder.config.factor
        values = torch.from_numpy(np.asarray(RAMP, np.float32))[None, None] / 255
        size = (SIZE[1] // f, SIZE[0] // f)
        wanted = torch.nn.functional.interpolate(values, size, mode="bilinear")  # comfy.utils.reshape_mask
        torch.testing.assert_close(given.pop(), wanted)
        change = np.abs(pixels(made) - pixels(PICTURE)).mean((0, 2))
        assert change[0] == 0 and change[-8:].mean() > change[8:16].mean()


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_blend_by_white_along_latent_pixels_is_ordinary_inpainting(
    models: Mapping[str, Pipeline], strength: float
) -> None:
    f = models["plain"].autoencoder.config.factor
    mask = Image.new("L", SIZE)
    mask.paste(255, (2 * f, f, 4 * f, 3 * f))
    options = dict(mask_blur=0, strength=strength, steps=4, sampler="dpmpp_2m", seed=3)
    blended, hard = (
        models["plain"].inpaint("a", PICTURE, mask, blend_mask=on, **options)[0] for on in (True, False)
    )
    assert alike(blended, hard)


def test_grey_means_one_thing(models: Mapping[str, Pipeline]) -> None:
    with pytest.raises(ValueError, match="give soft_mask or blend_mask, not both"):
        models["plain"].inpaint("a", PICTURE, RAMP, soft_mask=True, blend_mask=True)
