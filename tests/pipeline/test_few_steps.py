"""Few-step models: each preset draws as diffusers' pipelines do with the scheduler that its model cards name."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from inkwash.cli import main
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule, cosine_betas
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.denoiser import sampler_of
from inkwash.pipeline.presets import PRESETS, Preset
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.weights.few_steps import FewSteps
from inkwash.weights.models.folder import write_folder
from tests.pipeline.test_pipelines_parity import psnr
from tests.weights.test_single_files import SMALL, random_checkpoint

diffusers = pytest.importorskip("diffusers")

SEED, SIDE, SHAPE = 3, 32, (4, 16, 16)
PLAIN = SMALL["small-sd1"]
FAMILIES = {
    "plain": PLAIN,
    "lcm": replace(PLAIN, unet=replace(PLAIN.unet, time_cond_dim=32)),
    "sdxl": SMALL["small-sdxl"],
}
TRAILING = {"timestep_spacing": "trailing"}
# preset -> the scheduler, its settings, and what the pipeline is called with
CARDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dmd2": ("LCMScheduler", {}, {"timesteps": [999, 749, 499, 249]}),
    "hyper": ("DDIMScheduler", TRAILING | {"set_alpha_to_one": True}, {}),
    "lcm-lora": ("LCMScheduler", {}, {}),
    "lightning": ("EulerDiscreteScheduler", TRAILING, {}),
    "tcd": ("TCDScheduler", {}, {"eta": 0.3}),
    "turbo": ("EulerAncestralDiscreteScheduler", TRAILING, {}),
}


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    for name, family in FAMILIES.items():
        write_folder(random_checkpoint(family), module_path / name)
    return {name: module_path / name for name in FAMILIES}


@pytest.fixture
def theirs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Image.Image]]:
    """Pictures by a pipeline of diffusers with our noise, from our start."""

    def draw(kind: str, name: str, scheduler: str, settings: dict[str, Any], **options: Any) -> Image.Image:
        pipe = getattr(diffusers, kind).from_pretrained(folders[name], local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        made = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
        if scheduler == "TCDScheduler":
            made.alphas_cumprod[0] = 1.0  # of the last step alone, which leaves the first level's noise there
        pipe.scheduler, queue = made, NoiseSource([SEED], SHAPE)
        first = queue()
        if "Euler" not in scheduler:  # the noise of the last timestep, not one of unit variance
            first = first * (1 - made.alphas_cumprod[999]).sqrt()
        monkeypatch.setattr(f"{type(made).__module__}.randn_tensor", lambda *_, **__: queue())
        return pipe("a red taxi", latents=first, width=SIDE, height=SIDE, **options).images[0]

    return draw


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("preset", CARDS)
def test_a_preset_draws_as_the_scheduler_of_its_model_cards(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], preset: str, steps: int
) -> None:
    scheduler, settings, options = CARDS[preset]
    if "timesteps" in options and steps != 4:
        options = {"timesteps": [1000 // steps * k - 1 for k in range(steps, 0, -1)]}
    options = {"num_inference_steps": steps, "guidance_scale": 1.0} | options
    wanted = theirs("StableDiffusionPipeline", "plain", scheduler, settings, **options)
    made = inkwash.load(folders["plain"]).text_to_image("a red taxi", preset=preset, steps=steps, seed=SEED)
    assert psnr(made[0], wanted) >= 60


@pytest.mark.parametrize(("preset", "eta"), [("tcd", 0.0), ("tcd", 0.7), ("hyper", 0.5), ("hyper", 1.0)])
def test_eta_is_that_of_diffusers(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], preset: str, eta: float
) -> None:
    scheduler, settings, _ = CARDS[preset]
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "eta": eta}
    wanted = theirs("StableDiffusionPipeline", "plain", scheduler, settings, **options)
    model = inkwash.load(folders["plain"])
    made = model.text_to_image("a red taxi", preset=preset, steps=4, eta=eta, seed=SEED)
    assert psnr(made[0], wanted) >= 60
    assert psnr(model.text_to_image("a red taxi", preset=preset, steps=4, seed=SEED)[0], wanted) < 40


@pytest.mark.parametrize("preset", CARDS)
def test_sdxl_of_every_kind(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], preset: str
) -> None:
    """SDXL-Turbo with guidance 0, as its card says, which there is none, too."""
    scheduler, settings, options = CARDS[preset]
    guidance = 0.0 if preset == "turbo" else 1.0
    options = {"num_inference_steps": 4, "guidance_scale": guidance} | options
    wanted = theirs("StableDiffusionXLPipeline", "sdxl", scheduler, settings, **options)
    made = inkwash.load(folders["sdxl"]).text_to_image("a red taxi", preset=preset, steps=4, seed=SEED)
    assert psnr(made[0], wanted) >= 60


@pytest.mark.parametrize("scale", [1.5, 8.0])
def test_lcm_is_given_its_guidance_scale(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], scale: float
) -> None:
    options = {"num_inference_steps": 4, "guidance_scale": scale}
    # whose pipeline of its own subtracts 1, as does Stable Diffusion's
    wanted = theirs("LatentConsistencyModelPipeline", "lcm", "LCMScheduler", {}, **options)
    model = inkwash.load(folders["lcm"])
    made = model.text_to_image("a red taxi", preset="lcm", cfg_scale=scale, seed=SEED)
    assert psnr(made[0], wanted) >= 60
    other = model.text_to_image("a red taxi", preset="lcm", cfg_scale=scale + 2, seed=SEED)
    assert psnr(other[0], wanted) < 50


@pytest.mark.parametrize("timesteps", [[800], [399], [799, 249]])
def test_timesteps_that_are_given_are_those_of_diffusers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, timesteps: list[int]
) -> None:
    """The networks of one step of Hyper-SD and DMD2 start at 800 and 399, from noise of variance 1."""
    options = {"timesteps": timesteps, "guidance_scale": 0.0}
    scheduler, queue = "LCMScheduler", NoiseSource([SEED], SHAPE)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders["plain"], local_files_only=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    start = queue()
    monkeypatch.setattr(f"{type(pipe.scheduler).__module__}.randn_tensor", lambda *_, **__: queue())
    wanted = pipe("a red taxi", latents=start, width=SIDE, height=SIDE, **options).images[0]
    model = inkwash.load(folders["plain"])
    made = model.text_to_image("a red taxi", preset="dmd2", timesteps=tuple(timesteps), seed=SEED)
    assert psnr(made[0], wanted) >= 60


def test_lightning_of_one_step_predicts_x0(
    folders: dict[str, Path], theirs: Callable[..., Image.Image], tmp_path: Path
) -> None:
    settings = TRAILING | {"prediction_type": "sample"}
    options = {"num_inference_steps": 1, "guidance_scale": 0.0}
    wanted = theirs("StableDiffusionPipeline", "plain", "EulerDiscreteScheduler", settings, **options)
    part = tmp_path / "sdxl_lightning_1step_unet_x0.safetensors"
    weights = inkwash.load(folders["plain"]).unet.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, part)
    model = inkwash.load(folders["plain"], parts=[part])
    assert model.few_steps and (model.few_steps.steps, model.prediction) == (1, "x0")
    made = model.text_to_image("a red taxi", preset="lightning", steps=1, seed=SEED)
    assert psnr(made[0], wanted) >= 60


def test_every_preset_names_a_sampler_and_a_schedule() -> None:
    for name, preset in PRESETS.items():
        request = TextToImageRequest(prompt="", preset=name)
        assert {key: getattr(request, key) for key in preset.values} == preset.values
        assert SCHEDULES[request.schedule](request.steps, inkwash.load("mini").schedule)[-1] == 0
    assert set(CARDS) | {"lcm", "guided"} == set(PRESETS)


def test_timesteps_of_tcd_are_those_of_the_models_schedule() -> None:
    """Without noise and with an x0 of 0, a step leaves what it went down to: at eta 0.5 from 500 to 250."""
    schedule = NoiseSchedule.from_betas(cosine_betas())
    model = replace(inkwash.load("mini"), schedule=schedule)
    request = TextToImageRequest(prompt="", sampler="tcd", eta=0.5)
    x, sigmas = torch.ones(1, 1, 1, 1, dtype=torch.float64), schedule.sigmas[[999, 500]]
    (step,) = sampler_of(model, request)(lambda x, _: 0 * x, x, sigmas, noise=lambda: 0 * x)
    torch.testing.assert_close(step.x.item(), (schedule.sigmas[250] / sigmas[0]).item(), rtol=1e-9, atol=0)


def test_what_is_given_stands_above_the_preset() -> None:
    request = TextToImageRequest(prompt="", preset="turbo", steps=2, sampler="LCM")
    assert (request.steps, request.sampler, request.schedule) == (2, "lcm", "turbo")
    again = TextToImageRequest.model_validate(request.model_dump())
    assert again == request


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "'fast' is not one of dmd2, guided, hyper, lcm"),
        ({"sampler": "euler", "eta": 1}, "eta 1: euler has none; samplers with an eta: ddim, ddim_cfgpp"),
        ({"preset": "lightning", "eta": 0.5}, "eta 0.5: euler has none"),
        ({"preset": "tcd", "eta": 1.5}, "eta"),
        ({"preset": "tcd", "eta": float("nan")}, "eta"),
        ({"timesteps": "5,5"}, "do not fall"),
        ({"timesteps": "900,x"}, "timesteps"),
        ({"timesteps": "900,100", "steps": 3}, "steps is 3, and 2 timesteps are given"),
        ({"timesteps": ()}, "timesteps"),
        ({"sigmas": "2,3"}, "2.0,3.0 do not fall"),
        ({"sigmas": "2,0"}, "sigmas"),
        ({"sigmas": "2,nan"}, "sigmas"),
        ({"sigmas": "2,1", "timesteps": "9,3"}, "give timesteps or sigmas, not both"),
        ({"sigmas": "2,1", "steps": 3}, "steps is 3, and 2 sigmas are given"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextToImageRequest(prompt="", **options)


def test_a_timestep_that_training_had_not_is_named() -> None:
    with pytest.raises(ValueError, match="timestep 1000 is not in 0 to 999"):
        inkwash.load("mini").text_to_image("", timesteps=(1000, 3))


def test_the_command_line_leaves_to_the_preset_what_is_not_given(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--width", "32", "--height", "32", "--seed", "1", "--json", "--output", "a.png"]
    assert main(["generate", "a rocket", "--preset", "tcd", "--steps", "2", *small]) == 0
    said = capsys.readouterr().out
    assert '"steps": 2' in said and '"sampler": "tcd"' in said and '"schedule": "lcm"' in said
    assert main(["replay", "a.png", "--output", "b.png"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_notes_come_through_the_command_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "tiny-turbo")
    options = ["--model", "tiny-turbo", "--seed", "1", "--output", "a.png"]
    assert main(["generate", "a", *options, "--steps", "6", "--cfg-scale", "7"]) == 0
    said = capsys.readouterr().err
    assert "inkwash: tiny-turbo draws in 1 to 4 steps, and 6 were asked for; use --preset turbo" in said
    assert "guidance in its weights, and cfg_scale 7 burns colours" in said
    assert main(["generate", "a", *options, "--preset", "turbo"]) == 0
    assert "turbo" not in capsys.readouterr().err


def test_sigmas_that_are_given_are_stepped_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = inkwash.load("mini"), {"seed": 2, "width": 32, "height": 32, "cfg_scale": 2.0}
    times = (999, 600, 300, 50)
    sigmas = model.schedule.sigmas[list(times)].tolist()
    by_times = model.text_to_image("a taxi", timesteps=times, **own)[0]
    assert psnr(model.text_to_image("a taxi", sigmas=sigmas, **own)[0], by_times) >= 60
    assert psnr(model.text_to_image("a taxi", sigmas=[9.5, 1.0, 0.5], **own)[0], by_times) < 50
    with pytest.raises(ValueError, match=r"sigma 1e\+06 is above .*, the model's own largest"):
        model.text_to_image("", sigmas=(1e6, 1.0))
    monkeypatch.chdir(tmp_path)
    given = ["--sigmas", "9.5,2.697,0.652", "--seed", "1", "--width", "32", "--height", "32"]
    assert main(["generate", "a", *given, "--output", "a.png"]) == 0
    assert main(["replay", "a.png", "--output", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_published_steps_are_known_by_a_short_name() -> None:
    for name, own in (("ays", "align_your_steps"), ("Align Your Steps", "align_your_steps")):
        assert TextToImageRequest(prompt="", schedule=name).schedule == own


def notes(model: Pipeline, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.text_to_image(**{"prompt": "", "width": 32, "height": 32, "steps": 1} | options)
    return caplog.text


def test_settings_that_do_not_suit_a_distilled_model_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    plain = inkwash.load("mini")
    turbo = replace(plain, few_steps=FewSteps("turbo", "", steps=1))
    assert "draws in 1 step, and 2 were asked for; use --preset turbo --steps 1" in notes(
        turbo, caplog, steps=2
    )
    several = replace(plain, few_steps=FewSteps("turbo", "", steps=2))
    assert "1 to 4 steps, and 6 were asked for; use --preset turbo --steps 2" in notes(
        several, caplog, steps=6
    )
    assert notes(several, caplog, preset="turbo", steps=4) == ""
    assert "cfg_scale 5 burns colours; use at most 1.5" in notes(turbo, caplog)
    assert "negative prompt does nothing" in notes(turbo, caplog, preset="turbo", negative_prompt="rain")
    assert notes(turbo, caplog, preset="turbo") == ""
    assert notes(plain, caplog, steps=6, negative_prompt="rain") == ""


def test_guidance_of_each_kind_is_noted(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    plain = inkwash.load("mini")
    hyper = replace(plain, few_steps=FewSteps("hyper", "", steps=8))
    kept = replace(plain, few_steps=FewSteps("hyper", "", steps=8, cfg_scale=5.0))
    assert "cfg_scale 5 burns colours" in notes(hyper, caplog, cfg_scale=5)
    assert notes(kept, caplog, cfg_scale=5) == "" and "burns" in notes(kept, caplog, cfg_scale=9)
    said = notes(hyper, caplog, preset="hyper", cfg_scale=0)
    assert "cfg_scale 0 follows the prompt less" in said and "guidance_scale 0 of diffusers is 1" in said
    # guidance as an input
    lcm = inkwash.load(folders["lcm"])
    assert notes(lcm, caplog, preset="lcm") == ""
    assert "sees cfg_scale, and 1 is no guidance; use --preset lcm" in notes(lcm, caplog, preset="lcm-lora")
    assert "negative prompt does nothing" in notes(lcm, caplog, preset="lcm", negative_prompt="rain")
    assert "use at most 15" in notes(lcm, caplog, preset="lcm", cfg_scale=20)
    said = notes(plain, caplog, preset="lcm", negative_prompt="rain")
    assert "preset lcm is for networks that see the guidance scale, and mini does not" in said
    assert "negative" not in said  # guidance acts as usual


def test_a_network_of_one_step_is_told_its_timestep(caplog: pytest.LogCaptureFixture) -> None:
    model = replace(inkwash.load("mini"), few_steps=FewSteps("dmd2", "", steps=1, timesteps=(399,)))
    said = notes(model, caplog, preset="dmd2", steps=1)
    assert "draws at timestep 399 alone; use --preset dmd2 --timesteps 399" in said
    options = {"prompt": "", "width": 32, "height": 32, "preset": "dmd2", "timesteps": "399"}
    caplog.clear()
    model.text_to_image(**options)
    assert caplog.text == ""


def test_settings_that_do_not_suit_a_preset_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the model is: who asks for a preset says that it was distilled."""
    plain = inkwash.load("mini")
    said = notes(plain, caplog, preset="turbo", steps=5, cfg_scale=7)
    assert "a model for preset turbo draws in 1 to 4 steps, and 5 were asked for" in said
    assert "cfg_scale 7 burns colours" in said
    assert notes(plain, caplog, preset="lcm-lora", steps=8) == ""


def test_a_lora_that_was_distilled_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = "lora_unet_middle_block_1_proj_in"
    model = inkwash.load("mini")
    out, into = model.unet.middle_block[1].proj_in.weight.shape[:2]
    ones: dict[str, Tensor] = {
        f"{key}.lora_down.weight": torch.ones(1, into),
        f"{key}.lora_up.weight": torch.zeros(out, 1),
    }
    save_file(ones, tmp_path / "dmd2_1step.safetensors")
    model = inkwash.load("mini", loras=tmp_path)
    said = notes(model, caplog, prompt="<lora:dmd2_1step>", steps=3)
    assert "draws in 1 step, and 3 were asked for; use --preset dmd2 --timesteps 399" in said
    styles = tmp_path / "styles.csv"
    styles.write_text("name,prompt,negative_prompt\nquick,<lora:dmd2_1step>,\n")
    model = inkwash.load("mini", loras=tmp_path, styles=styles)
    assert "use --preset dmd2 --timesteps 399" in notes(
        model, caplog, prompt="a taxi", styles=("quick",), steps=3
    )


def test_a_preset_is_a_value() -> None:
    assert Preset(1, 1.0, "euler", "turbo", 4).values == {
        "steps": 1,
        "cfg_scale": 1.0,
        "sampler": "euler",
        "schedule": "turbo",
    }
