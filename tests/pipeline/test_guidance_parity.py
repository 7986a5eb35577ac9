"""Guidance against diffusers' pipelines, at the same random small weights and the same noise, in latents."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import inkwash
from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import ddim
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.guidance import GuidanceFields, guide
from inkwash.weights.models.folder import write_folder
from tests.weights.test_single_files import SMALL, random_checkpoint

diffusers = pytest.importorskip("diffusers")
STEPS = 3


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    for prediction in ("eps", "v"):
        write_folder(random_checkpoint(SMALL["small-sd1"], prediction), module_path / prediction)
    return {prediction: module_path / prediction for prediction in ("eps", "v")}


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Noise (2, 4, 16, 24), and the contexts of both prompts."""
    random = torch.Generator().manual_seed(5)
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=random) for shape in ((2, 4, 16, 24), (2, 77, 64), (2, 77, 64))
    )


def ours(model: Pipeline, scale: float, **fields: object) -> Tensor:
    noise, cond, uncond = given()
    sigmas = ddim(STEPS, model.schedule, to_zero=False)
    signals = 1 / (1 + sigmas.square()).sqrt()
    x = noise / signals[0]
    with torch.inference_mode():
        denoise = precondition(model.network(), model.prediction, model.schedule)
        D = cfg(denoise, {"context": cond}, {"context": uncond}, scale)
        D = guide(D, model, GuidanceFields.model_validate(fields), scale, sigmas)
        for step in SAMPLERS["ddim"](D, x, sigmas):
            x = step.x
    return x * signals[-1]


def theirs(folder: Path, kind: str, scale: float, **options: object) -> Tensor:
    noise, cond, uncond = given()
    pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    size = {"height": noise.shape[2] * pipe.vae_scale_factor, "width": noise.shape[3] * pipe.vae_scale_factor}
    return pipe(
        prompt_embeds=cond, negative_prompt_embeds=uncond, latents=noise, guidance_scale=scale,
        num_inference_steps=STEPS, output_type="latent", **size, **options
    ).images  # fmt: skip


@pytest.mark.parametrize(("prediction", "scale"), [("eps", 5.0), ("v", 1.0)])
def test_perturbed_attention_guidance(folders: dict, prediction: str, scale: float) -> None:
    made = ours(model := inkwash.load(folders[prediction]), scale, pag_scale=3.0)
    wanted = theirs(folders[prediction], "StableDiffusionPAGPipeline", scale, pag_scale=3.0)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert not torch.allclose(made, ours(model, scale), rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_self_attention_guidance(folders: dict, scale: float) -> None:
    made = ours(model := inkwash.load(folders["eps"]), scale, sag_scale=0.75)
    wanted = theirs(folders["eps"], "StableDiffusionSAGPipeline", scale, sag_scale=0.75)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert not torch.allclose(made, ours(model, scale), rtol=1e-3)


def test_rescaled_guidance(folders: dict) -> None:
    """Of what predicts v: elsewhere diffusers takes other spreads, since it rescales what the network gives."""
    made = ours(model := inkwash.load(folders["v"]), 7.5, cfg_rescale=0.7)
    wanted = theirs(folders["v"], "StableDiffusionPipeline", 7.5, guidance_rescale=0.7)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert not torch.allclose(made, ours(model, 7.5), rtol=1e-3)
