"""A picture that is changed: what is kept, what is drawn, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import inkwash
from inkwash.diffusion.guidance import keep_known
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas, tail, uniform
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.images import MAX_PIXELS, open_picture
from inkwash.pipeline.tasks.inpaint import around, surroundings

SD = NoiseSchedule.from_betas(sqrt_linear_betas())


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def mask() -> Image.Image:
    image = Image.new("L", (64, 40))
    ImageDraw.Draw(image).ellipse((20, 8, 44, 30), fill=255)
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


# ---------------------------------------------------------------- strength


@pytest.mark.parametrize(
    ("rule", "strength", "walked"),
    [
        ("a1111", 0.75, 16),
        ("a1111", 0.01, 1),
        ("a1111", 1.0, 20),
        ("diffusers", 0.75, 15),
        ("diffusers", 0.01, 1),
        ("diffusers", 1.0, 20),
        ("exact", 0.75, 20),
        ("exact", 1.0, 20),
    ],
)
def test_a_strength_takes_so_many_steps(rule: str, strength: float, walked: int) -> None:
    sigmas = tail(20, strength, rule, lambda n: uniform(n, SD))
    assert len(sigmas) - 1 == walked
    whole = uniform(int(20 / strength) if rule == "exact" else 20, SD)
    assert torch.equal(sigmas, whole[-walked - 1 :])


def test_the_diffusers_rule_is_theirs() -> None:
    diffusers = pytest.importorskip("diffusers")
    for strength in (0.1, 0.33, 0.5, 0.8, 1.0):
        pipe = diffusers.StableDiffusionImg2ImgPipeline.__new__(diffusers.StableDiffusionImg2ImgPipeline)
        scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
        scheduler.set_timesteps(20)
        object.__setattr__(pipe, "scheduler", scheduler)
        _, theirs = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(pipe, 20, strength, "cpu")
        assert len(tail(20, strength, "diffusers", lambda n: uniform(n, SD))) - 1 == theirs


@pytest.mark.parametrize("strength", [0, -0.1, 1.2, float("nan")])
def test_other_strengths_are_refused(model: Pipeline, picture: Image.Image, strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        model.image_to_image("a taxi", picture, strength=strength)
    with pytest.raises(ValueError, match="is not above 0 and at most 1"):
        tail(20, strength, "a1111", lambda n: uniform(n, SD))


# ---------------------------------------------------------------- image to image


@pytest.mark.parametrize("rule", ["a1111", "diffusers", "exact"])
def test_strength_1_is_text_to_image(model: Pipeline, picture: Image.Image, rule: str) -> None:
    options = {"steps": 4, "seed": 3, "cfg_scale": 3}
    changed = model.image_to_image("a taxi", picture, strength=1, step_rule=rule, **options)[0]
    drawn = model.text_to_image("a taxi", width=64, height=40, **options)[0]
    assert np.array_equal(pixels(changed), pixels(drawn))


def test_less_strength_stays_nearer_to_the_picture(model: Pipeline, picture: Image.Image) -> None:
    latent = model.autoencoder.encode(
        torch.from_numpy(pixels(picture) / 127.5 - 1).permute(2, 0, 1)[None].float()
    )
    kept = ((model.autoencoder.decode(latent.mean).clamp(-1, 1)[0].permute(1, 2, 0) + 1) * 127.5).numpy()

    def distance(strength: float) -> float:
        image = model.image_to_image("", picture, strength=strength, steps=20, cfg_scale=1)[0]
        return float(np.abs(pixels(image) - kept).mean())

    distances = [distance(strength) for strength in (0.05, 0.4, 0.95)]
    assert distances == sorted(distances) and distances[0] < 0.7 * distances[-1]


def test_a_picture_keeps_its_size_and_says_its_strength(model: Pipeline, picture: Image.Image) -> None:
    odd = picture.crop((0, 0, 63, 39))
    image = model.image_to_image("a taxi", odd, steps=2)[0]
    assert image.size == (64, 40)  # the nearest that the model can draw
    assert model.image_to_image("a taxi", odd, steps=2, width=32, height=32)[0].size == (32, 32)
    assert "Denoising strength: 0.75" in image.info["parameters"]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde"])
def test_batch_equals_alone(model: Pipeline, picture: Image.Image, mask: Image.Image, sampler: str) -> None:
    options = {"steps": 6, "sampler": sampler}
    for draw in (
        lambda **more: model.image_to_image("a taxi", picture, **options, **more),
        lambda **more: model.inpaint("a taxi", picture, mask, fill="noise", **options, **more),
    ):
        batch = draw(seed=5, batch_size=2)
        assert np.abs(pixels(batch[1]) - pixels(draw(seed=6)[0])).max() <= 1


# ---------------------------------------------------------------- inpainting


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_not_masked_stays_to_the_byte(
    model: Pipeline, picture: Image.Image, mask: Image.Image, sampler: str
) -> None:
    image = model.inpaint("a taxi", picture, mask, steps=4, sampler=sampler, strength=0.9)[0]
    assert image.size == picture.size
    outside = pixels(mask) == 0
    assert np.array_equal(pixels(image)[outside], pixels(picture)[outside])
    inside = np.asarray(mask) == 255
    assert np.abs(pixels(image) - pixels(picture))[inside].mean() > 10


@pytest.mark.parametrize("fill", ["original", "around", "noise", "nothing"])
@pytest.mark.parametrize("only_masked", [False, True])
def test_every_way_to_inpaint(
    model: Pipeline, picture: Image.Image, mask: Image.Image, fill: str, only_masked: bool
) -> None:
    options = {"steps": 3, "fill": fill, "only_masked": only_masked, "padding": 6}
    image = model.inpaint("a taxi", picture.crop((0, 0, 63, 39)), mask.crop((0, 0, 63, 39)), **options)[0]
    assert image.size == (63, 39)
    outside = pixels(mask)[:39, :63] == 0
    assert np.array_equal(pixels(image)[outside], pixels(picture)[:39, :63][outside])
    assert "Steps: 3" in image.info["parameters"]


def test_the_known_part_is_seen_with_its_noise() -> None:
    x, latent, noise = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(3))
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., :2] = 1
    seen = []

    def D(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.full_like(x, 7.0)

    out = keep_known(D, latent, hole, noise)(x, torch.tensor(2.5, dtype=torch.float64))
    assert torch.equal(seen[0][..., :2], x[..., :2])
    torch.testing.assert_close(seen[0][..., 2:], (latent + 2.5 * noise)[..., 2:])
    assert (out[..., :2] == 7).all() and torch.equal(out[..., 2:], latent[..., 2:])


def test_masks_that_cannot_be(model: Pipeline, picture: Image.Image, mask: Image.Image) -> None:
    with pytest.raises(ValueError, match="mask has 32x32 and the picture 64x40"):
        model.inpaint("a taxi", picture, mask.resize((32, 32)))
    with pytest.raises(ValueError, match="black everywhere"):
        model.inpaint("a taxi", picture, Image.new("L", picture.size))
    with pytest.raises(ValueError, match="'solid' is not one of around, noise, nothing, original"):
        model.inpaint("a taxi", picture, mask, fill="solid")


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96)])
@pytest.mark.parametrize("spot", [(0, 0, 5, 5), (60, 30, 64, 40), (30, 10, 34, 30), (0, 0, 64, 40)])
def test_surroundings_hold_the_mask_and_have_the_shape(size: tuple[int, int], spot: tuple) -> None:
    mask = Image.new("L", (64, 40))
    mask.paste(255, spot)
    left, top, right, bottom = surroundings(mask, 4, size)
    assert 0 <= left <= spot[0] and 0 <= top <= spot[1]
    assert spot[2] <= right <= 64 and spot[3] <= bottom <= 40
    if right - left < 64 and bottom - top < 40:
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.15)


def test_colours_flow_in_from_around() -> None:
    picture = torch.zeros(1, 3, 31, 50)
    picture[..., 25:] = 1.0
    known = torch.ones(1, 1, 31, 50)
    known[..., 5:26, 10:40] = 0
    filled = around(torch.where(known == 1, picture, torch.full_like(picture, 99.0)), known)
    assert torch.equal(filled * known, picture * known)
    assert filled.min() >= 0 and filled.max() <= 1
    assert filled[0, 0, 15, 11] < 0.2 and filled[0, 0, 15, 38] > 0.8


# ---------------------------------------------------------------- files


def test_pictures_that_are_given(tmp_path: Path, picture: Image.Image) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (2, 4)
    (tmp_path / "text.png").write_text("no picture")
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name in ("text.png", "cut.png", "none.png"):
        with pytest.raises(ValueError, match=f"{name} is not a readable picture"):
            open_picture(tmp_path / name)
    Image.new("1", (40_000, 2_000)).save(tmp_path / "huge.png")
    assert MAX_PIXELS < 40_000 * 2_000
    with pytest.raises(ValueError, match="has 40000x2000 pixels"):
        open_picture(tmp_path / "huge.png")
