"""Drawing beyond one pass over one noise: variations, a second pass, a refiner, outpainting, grids, and replay."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inkwash
from inkwash.diffusion.guidance import Guided, Prediction
from inkwash.diffusion.noise import NoiseSource, centred, slerp
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.switching import switch_denoiser
from inkwash.explain.sheets import Axis, axis, cells, sheet
from inkwash.kernels.library import load
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.names import UPSCALER_NAMES
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import recorded
from inkwash.pipeline.task_requests import OutpaintRequest, TextToImageRequest
from inkwash.pipeline.tasks.depth import nearness
from inkwash.pipeline.tasks.outpaint import extended

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture(scope="module")
def cascade(tiny: Path) -> Pipeline:
    return inkwash.load(tiny, refiner=tiny)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def fields(image: Image.Image) -> dict[str, str]:
    return parse_parameters(image.info["parameters"])[2]


# ---------------------------------------------------------------- the same again


def drawn() -> dict[str, str]:
    """The hash of what each sampler makes of the same request, and one of them in other sizes."""
    model = inkwash.load("mini")

    def digest(sampler: str, width: int, height: int) -> str:
        options = {"steps": 3, "cfg_scale": 3, "seed": 7, "width": width, "height": height}
        image = model.text_to_image("a taxi", "rain", sampler=sampler, **options)[0]
        return hashlib.sha256(image.tobytes()).hexdigest()

    made = {sampler: digest(sampler, 64, 64) for sampler in SAMPLERS}
    return made | {str(width): digest("euler", width, height) for width, height in ((128, 64), (192, 192))}


IN_ANOTHER = """
import json, sys, torch
from tests.pipeline.test_passes import drawn
torch.set_num_threads(int(sys.argv[1]))
print(json.dumps(drawn()))
"""


def test_every_sampler_draws_the_same_in_another_process_and_with_other_threads() -> None:
    """torch's own GroupNorm and convolutions add in an order that is the threads'; so without kernels they are 1."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait for a turn are not to take another's
    command = [sys.executable, "-c", IN_ANOTHER, "2" if load() else "1"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    there, threads = json.loads(run.stdout), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = drawn()
    finally:
        torch.set_num_threads(threads)
    assert here.keys() >= SAMPLERS.keys() and here == there
    # what adds no noise of its own differs from sampler to sampler all the same
    assert len(set(here.values())) > len(SAMPLERS) / 2


# ---------------------------------------------------------------- seeds


def test_variations_go_from_one_noise_to_the_other(model: Pipeline) -> None:
    draw = lambda **more: model.text_to_image("a taxi", steps=3, **more)[0]  # noqa: E731
    first, other = draw(seed=3), draw(seed=9)
    assert np.array_equal(pixels(draw(seed=3, variation_seed=9)), pixels(first))
    assert np.array_equal(pixels(draw(seed=3, variation_seed=9, variation_strength=1)), pixels(other))
    near, far = (draw(seed=3, variation_seed=9, variation_strength=s) for s in (0.1, 0.5))
    distance = lambda image: np.abs(pixels(image) - pixels(first)).mean()  # noqa: E731
    assert 0 < distance(near) < distance(far)
    assert fields(near) | {"Variation seed": "9", "Variation seed strength": "0.1"} == fields(near)


def test_a_batch_of_variations_has_one_seed(model: Pipeline) -> None:
    options = {"seed": 3, "steps": 3, "variation_strength": 0.3}
    batch = model.text_to_image("a taxi", variation_seed=5, batch_size=3, **options)
    for k, image in enumerate(batch):
        alone = model.text_to_image("a taxi", variation_seed=5 + k, **options)[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1
        assert image.info["parameters"] == alone.info["parameters"]


@given(share=st.floats(0, 1), seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)))
@settings(max_examples=30, deadline=None)
def test_slerp_keeps_the_length_of_columns_of_equal_length(share: float, seeds: tuple[int, int]) -> None:
    low, high = (torch.nn.functional.normalize(NoiseSource([s], (4, 8, 6))(), dim=2) for s in seeds)
    made = slerp(low, high, share)
    torch.testing.assert_close(made.norm(dim=2), torch.ones(1, 4, 6), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slerp(low, low, share), low)
    torch.testing.assert_close(slerp(high, low, 1 - share), made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [(4, 6), (12, 6), (4, 20), (9, 10), (9, 11), (3, 5)])
def test_noise_of_another_size_lies_in_the_middle(inner: tuple[int, int]) -> None:
    outer = torch.zeros(1, 2, 9, 11)
    made = centred(torch.ones(1, 2, *inner), outer)
    rows, columns = (made[0, 0].any(dim=1 - d).nonzero().flatten().tolist() for d in (0, 1))
    for found, small, large in ((rows, inner[0], 9), (columns, inner[1], 11)):
        assert len(found) == min(small, large)
        assert found[0] == max(0, (large - small) // 2)


def test_seed_resize_keeps_the_middle(model: Pipeline) -> None:
    wide = model.text_to_image("a", seed=1, steps=2, width=48, height=32, seed_resize_from=(32, 32))[0]
    assert fields(wide)["Seed resize from"] == "32x32"
    same = model.text_to_image("a", seed=1, steps=2, seed_resize_from="32x32")[0]
    assert np.array_equal(pixels(same), pixels(model.text_to_image("a", seed=1, steps=2)[0]))


# ---------------------------------------------------------------- two passes


@pytest.mark.parametrize("upscaler", UPSCALER_NAMES)
def test_a_second_pass_is_larger_and_says_so(model: Pipeline, upscaler: str) -> None:
    seen = []
    options = {"hires": 1.5, "hires_steps": 3, "hires_strength": 0.6, "hires_upscaler": upscaler}
    batch = model.text_to_image("a taxi", steps=2, seed=4, batch_size=2, on_step=seen.append, **options)
    assert [step.index for step in seen] == [0, 1, 2, 3, 4]
    assert batch[0].size == (48, 48)
    said = {"Size": "32x32", "Denoising strength": "0.6", "Hires upscale": "1.5", "Hires steps": "3"}
    assert fields(batch[0]).items() >= (said | {"Hires upscaler": UPSCALER_NAMES[upscaler]}).items()
    alone = model.text_to_image("a taxi", steps=2, seed=5, **options)[0]
    assert np.abs(pixels(batch[1]) - pixels(alone)).max() <= 1


def test_a_second_pass_keeps_what_its_strength_leaves(model: Pipeline) -> None:
    def drawn(strength: float) -> np.ndarray:
        options = {"hires": 2, "hires_strength": strength, "hires_upscaler": "lanczos"}
        return pixels(model.text_to_image("a", steps=5, seed=4, **options)[0])

    kept = drawn(0.01)
    near, far = (np.abs(drawn(strength) - kept).mean() for strength in (0.1, 0.95))
    assert 0 < near < 0.7 * far
    whole = model.text_to_image("a", steps=3, seed=4, hires=2, hires_strength=1)[0]
    assert np.array_equal(
        pixels(whole), pixels(model.text_to_image("a", steps=3, seed=4, width=64, height=64)[0])
    )


# ---------------------------------------------------------------- the refiner


def constant(value: float) -> Guided:
    return Guided(lambda x, sigma, need: Prediction.same(torch.full_like(x, value), x.shape[1]))


def test_the_denoiser_is_switched_by_each_pictures_own_level() -> None:
    D = switch_denoiser(constant(1.0), constant(2.0), 0.5)
    x = torch.zeros(3, 4, 2, 2)
    assert D(x, torch.tensor(0.5)).unique().tolist() == [1]
    assert D(x, torch.tensor(0.49)).unique().tolist() == [2]
    levels = torch.tensor([0.6, 0.4, 0.5])
    assert D(x, levels)[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert D.predict(x, levels, "all").uncond[:, 0, 0, 0].tolist() == [1, 2, 1]


def test_a_model_that_refines_itself_changes_nothing(model: Pipeline, cascade: Pipeline) -> None:
    options = {"steps": 5, "seed": 2, "cfg_scale": 3}
    plain = model.text_to_image("a taxi", **options)[0]
    for share in (None, 0.3):
        made = cascade.text_to_image("a taxi", refiner_switch_at=share, **options)[0]
        assert np.array_equal(pixels(made), pixels(plain))
        assert fields(made)["Refiner"] == f"tiny [{model.hash}]"
        assert fields(made)["Refiner switch at"] == str(share or 0.8)
    again = cascade.text_to_image("a taxi", refiner_strength=0.5, **options)[0]
    assert not np.array_equal(pixels(again), pixels(plain))
    batch = cascade.text_to_image("a taxi", refiner_strength=0.5, **options | {"seed": 1, "batch_size": 2})
    assert np.abs(pixels(batch[1]) - pixels(again)).max() <= 1


def test_what_a_refiner_cannot_do_is_refused(model: Pipeline, cascade: Pipeline) -> None:
    with pytest.raises(ValueError, match="need a refiner"):
        model.text_to_image("a", refiner_strength=0.5)
    with pytest.raises(ValueError, match="not both"):
        cascade.text_to_image("a", refiner_strength=0.5, refiner_switch_at=0.5)
    for value in (0, 1, 1.2):
        with pytest.raises(ValueError, match="refiner_switch_at"):
            cascade.text_to_image("a", refiner_switch_at=value)


# ---------------------------------------------------------------- the recipe

EVERYTHING = {
    "steps": 3,
    "seed": 11,
    "variation_seed": 5,
    "variation_strength": 0.25,
    "seed_resize_from": (48, 32),
    "hires": 1.5,
    "hires_strength": 0.5,
    "hires_steps": 2,
    "hires_upscaler": "latent_bicubic",
    "refiner_switch_at": 0.5,
    "sampler": "euler_ancestral",
    "schedule": "karras",
    "cfg_scale": 3.5,
    "width": 40,
    "height": 32,
}


def test_the_recipe_and_the_text_both_bring_the_request_back(cascade: Pipeline) -> None:
    image = cascade.text_to_image("a taxi", "rain", batch_size=2, **EVERYTHING)[1]
    own = recorded({RECIPE: json.loads(image.info[RECIPE])})
    assert own.picture == 1 and own.request == TextToImageRequest(
        prompt="a taxi", negative_prompt="rain", batch_size=2, **EVERYTHING
    )
    used = {"name": "tiny", "hash": cascade.hash}
    assert own.refiner == own.model and own.model.items() >= used.items()
    text = recorded({"parameters": image.info["parameters"]})
    assert text.request == TextToImageRequest(
        prompt="a taxi", negative_prompt="rain", **EVERYTHING | {"variation_seed": 6}
    )
    assert text.refiner == used
    again = cascade.text_to_image("a taxi", "rain", **EVERYTHING | {"variation_seed": 6})[0]
    assert np.abs(pixels(again) - pixels(image)).max() <= 1


# ---------------------------------------------------------------- sides


def test_outpainting_keeps_the_picture_to_the_byte(model: Pipeline) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    sides = {"left": 5, "top": 0, "right": 12, "bottom": 7}
    batch = model.outpaint("a taxi", picture, steps=3, seed=2, batch_size=2, **sides)
    for image in batch:
        assert image.size == (57, 39)
        assert np.array_equal(pixels(image.crop((5, 0, 45, 32))), pixels(picture))
    alone = model.outpaint("a taxi", picture, steps=3, seed=3, **sides)[0]
    assert np.abs(pixels(batch[1]) - pixels(alone)).max() <= 1
    with pytest.raises(ValueError, match="nothing to draw"):
        model.outpaint("a taxi", picture)


def test_edges_go_on_where_there_is_room() -> None:
    picture = Image.new("RGB", (16, 16), (200, 30, 10))
    canvas, mask = extended(picture, OutpaintRequest(prompt="", right=16))
    assert np.abs(pixels(canvas) - [200, 30, 10]).max() <= 1
    assert (pixels(mask)[:, :16] == 0).all() and (pixels(mask)[:, 16:] == 255).all()


def test_depth_is_taken_at_any_range() -> None:
    values = np.random.default_rng(1).random((16, 24)).astype(np.float32)
    shown = [
        nearness(Image.fromarray(values * scale + shift), (8, 12)) for scale, shift in ((1, 0), (900, 7))
    ]
    assert shown[0].shape == (1, 1, 8, 12) and shown[0].aminmax() == (-1, 1)
    torch.testing.assert_close(shown[0], shown[1], rtol=1e-4, atol=1e-4)
    sixteen = Image.fromarray((values * 65535).astype(np.uint16))
    torch.testing.assert_close(nearness(sixteen, (8, 12)), shown[0], rtol=1e-3, atol=1e-3)
    assert not nearness(Image.new("L", (9, 9), 80), (4, 4)).any()


# ---------------------------------------------------------------- grids


def test_axes_are_read_as_they_are_written() -> None:
    assert axis("steps=10, 20") == Axis("steps", ("10", "20"))
    assert axis('prompt="a taxi, noto style",a rocket') == Axis("prompt", ("a taxi, noto style", "a rocket"))
    assert axis("cfg-scale=3").name == "cfg_scale"
    for text in ("steps", "steps=", "size=3", "batch_size=1,2", "=3"):
        with pytest.raises(ValueError, match="axis"):
            axis(text)


def test_cells_are_requests_and_are_checked() -> None:
    request = TextToImageRequest(prompt="a", seed=4)
    rows = cells(request, [axis("steps=2,3"), axis("sampler=euler,DPM++ 2M Karras")])
    assert [[(c.steps, c.sampler, c.schedule, c.seed) for c in row] for row in rows] == [
        [(2, "euler", "automatic", 4), (3, "euler", "automatic", 4)],
        [(2, "dpmpp_2m", "karras", 4), (3, "dpmpp_2m", "karras", 4)],
    ]
    with pytest.raises(ValueError, match="'no' is not one of"):
        cells(request, [axis("sampler=euler,no")])
    for bad in ([], [axis("steps=1")] * 2, [axis("steps=1"), axis("seed=1"), axis("cfg_scale=1")]):
        with pytest.raises(ValueError, match="one axis or two"):
            cells(request, bad)
    with pytest.raises(ValueError, match="one picture a cell"):
        cells(TextToImageRequest(prompt="a", batch_size=2), [axis("steps=1,2")])
    with pytest.raises(ValueError, match="300 pictures"):
        cells(request, [axis("seed=" + ",".join(map(str, range(300))))])


def test_the_sheet_shows_each_picture_at_its_place() -> None:
    request = TextToImageRequest(prompt="a taxi")
    axes = [axis("steps=2,3,4"), axis("cfg_scale=1,5")]
    colours = [(40 * k, 255 - 40 * k, 90) for k in range(6)]
    images = [Image.new("RGB", (128, 128), colour) for colour in colours]
    images[0].info["parameters"] = "a taxi\nSteps: 2, Sampler: Euler, Seed: 0"
    made = sheet(request, axes, images)
    found = [tuple(colour) for colour in np.unique(pixels(made).reshape(-1, 3), axis=0).tolist()]
    assert set(colours) <= set(found)
    centres = [np.argwhere((pixels(made) == colour).all(-1)).mean(0) for colour in colours]
    assert [c[0] for c in centres[:3]] == [centres[0][0]] * 3 and centres[3][0] > centres[0][0] + 128
    assert centres[0][1] + 128 < centres[1][1] < centres[2][1] - 128
    assert fields(made)["X Type"] == "steps" and fields(made)["Y Values"] == "1, 5"
