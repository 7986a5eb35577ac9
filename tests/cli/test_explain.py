"""`inkwash explain`: the pictures show what is so."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw

import inkwash
from inkwash.diffusion.schedules import NoiseSchedule, linear_betas, sqrt_linear_betas
from inkwash.explain.denoising import GAP, MARGIN, denoising_strip, spread
from inkwash.explain.drawing import SEAL, fitting, font
from inkwash.explain.plots import linear_ticks, log_ticks, schedule_plot
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.images import to_images
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import read_parameters
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest

TILE, TOPS = 128, (112, 112 + 128 + 42)  # 32 pixels shown fourfold; the rows' upper edges


def tile(strip, column, row):
    left = MARGIN + column * (TILE + GAP)
    shown = strip.crop((left, TOPS[row], left + TILE, TOPS[row] + TILE))
    return np.asarray(shown)[::4, ::4]


def test_strip_starts_with_the_noise_and_ends_with_the_picture(tiny):
    model = inkwash.load(tiny)
    request = TextToImageRequest(prompt="a", steps=7, sampler="euler", seed=3)
    strip = denoising_strip(model, request, shown=4)
    picture = model.text_to_image("a", steps=7, sampler="euler", seed=3)[0]
    # Euler's last step goes to sigma 0, and so to the prediction itself.
    assert np.abs(tile(strip, 3, row=1).astype(int) - np.asarray(picture)).max() <= 1
    with torch.inference_mode():
        _, sigmas, x, _ = start(model, resolve(model, request))
        noise = to_images(model.autoencoder.decode((x / (1 + sigmas[0] ** 2) ** 0.5).float()))[0]
    assert np.abs(tile(strip, 0, row=0).astype(int) - np.asarray(noise)).max() <= 1
    columns = [tile(strip, k, row).tobytes() for k in range(4) for row in (0, 1)]
    assert len(set(columns)) == 8


def test_strip_draws_one_picture_of_a_batch_and_reports_each_step(tiny):
    model = inkwash.load(tiny)
    seen = []
    request = TextToImageRequest(prompt="a", steps=3, seed=3, batch_size=2)
    batch = denoising_strip(model, request, 8, lambda step: seen.append((step.index, len(step.x))))
    assert seen == [(0, 1), (1, 1), (2, 1)]
    assert batch.tobytes() == denoising_strip(model, request.model_copy(update={"batch_size": 1})).tobytes()
    with pytest.raises(ValueError, match="shown 1"):
        denoising_strip(model, request, 1)


@pytest.mark.parametrize(
    ("num_steps", "shown", "expected"), [(20, 2, [0, 19]), (5, 3, [0, 2, 4]), (3, 8, [0, 1, 2]), (1, 8, [0])]
)
def test_spread_holds_first_and_last(num_steps, shown, expected):
    assert spread(num_steps, shown) == expected


def dots(plot):
    """Centres (x, y) of the dots, found by their colour, from left to right."""
    near = np.abs(np.asarray(plot).astype(int) - ImageColor.getrgb(SEAL)).sum(-1) < 30
    near[:50] = False  # the legend
    columns = np.flatnonzero(near.any(0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    return [(group.mean(), np.flatnonzero(near[:, group].any(1)).mean()) for group in groups]


def test_plot_places_sigmas_on_both_axes():
    schedule = NoiseSchedule.from_betas(sqrt_linear_betas(1000, 0.00085, 0.012))
    plot = schedule_plot(
        schedule, torch.tensor([10.0, 1.0, 0.1, 0.0], dtype=torch.float64), size=(960, 400)
    ).image()
    (x0, y0), (x1, y1), (x2, y2) = dots(plot)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=1.5) and y0 - y1 > 60  # decades are equally high
    ac = schedule.alphas_cumprod.double().numpy()
    t = np.interp([0.1, 1, 10], np.sqrt(1 / ac - 1), np.arange(1000))
    assert (x1 - x0) / (x2 - x0) == pytest.approx((t[1] - t[0]) / (t[2] - t[0]), abs=0.005)


def test_plot_takes_levels_outside_the_training_and_a_schedule_that_ends_in_noise():
    ac = NoiseSchedule.from_betas(linear_betas(1000, 0.0001, 0.02)).alphas_cumprod.clone()
    ac[-1] = 0

    class Terminal:
        alphas_cumprod = ac

    plot = schedule_plot(Terminal(), torch.tensor([900.0, 1.0, 0.001, 0.0]), size=(640, 300)).image()  # type: ignore[arg-type]
    found = dots(plot)
    assert len(found) == 3
    assert all(0 < x < 640 and 50 < y < 240 for x, y in found)


def test_ticks():
    assert linear_ticks(1000) == [0, 200, 400, 600, 800, 999]
    assert linear_ticks(50) == [0, 10, 20, 30, 40, 49]
    assert linear_ticks(2) == [0, 1]
    assert log_ticks(0.03, 3) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert log_ticks(0.005, 200) == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_denoise_draws_a_picture_with_its_recipe(run, tiny, tmp_path):
    argv = ("explain", "denoise", "a red\ntaxi", "--steps", 3, "--seed", 7, "--model", tiny)
    assert run(*argv) == (0, "a-red-taxi-7-denoise.png\n", "")
    assert run(*argv, "--shown", 2, "--output", "two.png").out == "two.png\n"
    with Image.open("a-red-taxi-7-denoise.png") as image, Image.open("two.png") as two:
        assert image.size == two.size == (720, TOPS[1] + TILE + 66 + 400)
    prompt, _, fields = parse_parameters(read_parameters(tmp_path / "two.png") or "")
    assert prompt == "a red\ntaxi"
    assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("3", "7", "32x32")


@pytest.mark.parametrize(
    "arguments", ["--shown 1", "--shown 2.5", "--steps 0", "--sampler no", "--output a.svg", "--batch-size 2"]
)
def test_denoise_mistake_is_one_line_before_the_model_is_opened(run, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("inkwash.load", lambda *_, **__: pytest.fail("the model was opened"))
    result = run("explain", "denoise", "a", *arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert arguments.split()[0] in result.err
    assert not list(tmp_path.iterdir())


def test_long_prompt_is_cut_to_the_picture():
    draw = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    text = "a red taxi left of a book " * 100
    cut = fitting(draw, text, 24, 664)
    assert cut.endswith("...") and text.startswith(cut[:-3])
    longer = text[: len(cut) - 2] + "..."
    assert draw.textlength(cut, font(24)) <= 664 < draw.textlength(longer, font(24))
    assert fitting(draw, "a red taxi", 24, 664) == "a red taxi"
