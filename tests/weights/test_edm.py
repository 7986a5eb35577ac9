"""EDM's preconditioning equals diffusers', and Playground's and CosXL's files are drawn with as theirs are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.weights.configs import autoencoder_config_from_json, autoencoder_json
from inkwash.weights.families import FAMILIES
from inkwash.weights.inspect import inspect
from inkwash.weights.models.convert import convert
from inkwash.weights.models.single import read_single, write_single
from tests.weights.test_single_files import SMALL, random_checkpoint

diffusers = pytest.importorskip("diffusers")

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
MARKS = {
    "edm": {"edm_mean": torch.tensor(MEAN).view(1, 4, 1, 1), "edm_std": torch.tensor(STD).view(1, 4, 1, 1)},
    "edm_v": {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)},
}


@pytest.mark.parametrize(
    ("prediction", "theirs", "std"), [("edm", "epsilon", 0.5), ("edm_v", "v_prediction", 1.0)]
)
def test_denoiser_is_theirs(prediction: str, theirs: str, std: float) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_data=std, prediction_type=theirs)
    seen = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((x, t))
        return x.sin() * t.view(-1, 1, 1, 1).cos()

    D = precondition(network, prediction, NoiseSchedule.log_uniform(0.002, 80))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (0.003, 0.5, 60.0):
        made = D(x, torch.tensor(sigma), {})
        (given, t), level = seen.pop(), torch.tensor(sigma)
        assert torch.allclose(given, scheduler.precondition_inputs(x, level), rtol=1e-5)
        assert torch.allclose(t, scheduler.precondition_noise(level).expand(3), rtol=1e-5)
        expected = scheduler.precondition_outputs(x, network(given, t), level)
        seen.clear()
        assert torch.allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_levels_are_even_in_log_sigma() -> None:
    schedule = NoiseSchedule.log_uniform(0.002, 80, 100)
    assert (schedule.sigma_min, schedule.sigma_max) == pytest.approx((0.002, 80))
    steps = schedule.sigmas.log().diff()
    assert torch.allclose(steps, steps[:1].expand(99), rtol=1e-6)
    with pytest.raises(ValueError, match="should be 0 < min < max"):
        NoiseSchedule.log_uniform(80, 0.002)


@torch.no_grad()
def test_latents_have_their_own_mean_and_std() -> None:
    config = AutoencoderConfig(
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        latents_mean=(1.0, 2, 3, 4),
        latents_std=(4.0, 3, 2, 1),
    )
    assert autoencoder_config_from_json(autoencoder_json(config)) == config
    model = AutoencoderKL(config)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latent = model.encode(pixels).mean
    for c, (mean, std) in enumerate(zip(config.latents_mean or (), config.latents_std or (), strict=True)):
        raw = model.moments(pixels)[0][:, c]
        assert torch.allclose(latent[:, c], (raw - mean) * config.scale_factor / std, rtol=1e-5)
    plain = AutoencoderKL(replace(config, latents_mean=None, latents_std=None, scale_factor=1.0))
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(model.decode(latent), plain.decode(model.moments(pixels)[0]), atol=1e-5)
    with pytest.raises(ModelFileError, match="latents_mean is \\[1.0\\], and not null or 4 numbers"):
        autoencoder_config_from_json(autoencoder_json(config) | {"latents_mean": [1.0]})


@pytest.mark.parametrize("prediction", MARKS)
def test_a_file_is_drawn_with_and_converted(
    prediction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = SMALL["small-sdxl"]
    monkeypatch.setitem(FAMILIES, family.name, family)
    single, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    write_single(random_checkpoint(family), single)
    save_file(load_file(single) | MARKS[prediction], single)
    report = inspect(single)
    assert report["prediction_type"] == prediction and report["family"] == "small-sdxl"
    model = inkwash.load(single)
    assert model.schedule.sigma_max == pytest.approx(80 if prediction == "edm" else 120)
    if prediction == "edm":
        assert model.autoencoder.config.latents_mean == pytest.approx(MEAN)  # pyright: ignore
    picture = model.text_to_image("a", steps=3, schedule="karras", seed=1)[0]
    convert(single, folder, "diffusers")
    assert inspect(folder)["prediction_type"] == prediction
    again = inkwash.load(folder).text_to_image("a", steps=3, schedule="karras", seed=1)[0]
    assert picture.tobytes() == again.tobytes()
    scheduler = diffusers.EDMEulerScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config["sigma_max"] == pytest.approx(model.schedule.sigma_max)
    convert(folder, tmp_path / "back.safetensors", "single")
    assert {*MARKS[prediction]} <= load_file(tmp_path / "back.safetensors").keys()
    assert read_single(tmp_path / "back.safetensors").autoencoder.config == model.autoencoder.config
