"""A second model that goes on where the first one stops. B batch, C channels, H W latent size."""

import torch
from torch import Tensor

from inkwash.diffusion.guidance import Guided
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.switching import switch_denoiser
from inkwash.pipeline.denoising.denoiser import Watch, denoiser, sample
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request


def switched_to_refiner(
    D: Guided,
    model: Model,
    refiner: Model,
    resolved: Resolved[Request],
    sigmas: Tensor,
    size: tuple[int, int],
) -> Guided:
    """D, and from a share of the training's noise levels on the refiner's: at t < (1 - switch) N, as diffusers."""
    check_refiner(model, refiner)
    t = round((1 - resolved.request.switch_at) * len(model.schedule.alphas_cumprod))
    return switch_denoiser(
        D,
        refining(refiner, resolved, sigmas, size),
        float(model.schedule.sigma(torch.tensor(t))),
    )


def refining(refiner: Model, resolved: Resolved[Request], sigmas: Tensor, size: tuple[int, int]) -> Guided:
    """The refiner's denoiser, without controls, which are made for the base."""
    assert resolved.refiner_prompts
    request = resolved.request.model_copy(update={"controls": ()})
    return denoiser(refiner, request, resolved.refiner_prompts, sigmas, size, {})


def check_refiner(model: Model, refiner: Model) -> None:
    """Check that both models share one latent space; raise ValueError otherwise."""
    ours, theirs = model.autoencoder.config, refiner.autoencoder.config
    for name in ("latent_channels", "factor", "scale_factor"):
        a, b = (getattr(config, name, None) for config in (ours, theirs))
        if a != b and None not in (a, b):  # a tiny autoencoder has no scale_factor
            raise ValueError(f"{refiner.name} cannot refine {model.name}: their {name} is {b} and {a}")


def refine(
    model: Model,
    refiner: Model,
    resolved: Resolved[Request],
    latent: Tensor,
    strength: float,
    on_step: Watch | None,
) -> Tensor:
    """A finished latent, noised again and denoised by the refiner (Podell et al. 2023, section 2.5).

    It takes int(strength * steps) steps, at least one, and noise of its own: that which the latent was made of
    would leave its traces.
    """
    check_refiner(model, refiner)
    request = resolved.request
    sigmas = sigmas_for_strength(request, strength, refiner.schedule, "diffusers")
    noise = NoiseSource(request.seeds, tuple(latent.shape[1:]), model.device)
    noise()
    f = model.autoencoder.config.factor
    D = refining(refiner, resolved, sigmas, (latent.shape[3] * f, latent.shape[2] * f))
    return sample(refiner, request, D, sigmas, latent + noise() * sigmas[0].item(), noise, on_step)
