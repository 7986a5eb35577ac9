"""Samplers that go down too far and add fresh noise back."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.guidance import Guided
from inkwash.diffusion.samplers.singlestep import midpoint
from inkwash.diffusion.samplers.step import Noise, Step, ancestral, noised, pairs, toward


def euler_ancestral(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """Euler to below the next sigma, then fresh noise up to it. eta 0 is `euler`, 1 the usual."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        down, up = ancestral(sigma, sigma_next, eta)
        x = noised(toward(x, denoised, sigma, down), up, noise)
        yield Step(i, sigma, x, denoised)


def ddim(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, equation 12; eta by equation 16), which in sigmas is the ancestral step.

    DDIM's added noise, over sqrt(alpha_bar_next), is eta * sigma_next * sqrt(1 - sigma_next^2 / sigma^2).
    """
    return euler_ancestral(D, x, sigmas, noise=noise, eta=eta)


def ddim_cfgpp(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    share: float = 1 / 12.5,
) -> Iterator[Step]:
    """DDIM with CFG++ (Chung et al. 2024, algorithm 2): to the guided x0, on with the noise of the unguided one.

    share: of D's guidance; A1111's 1/12.5 takes the usual cfg_scales into the method's range of 0 to 1. Raises
    ValueError for a D that is no `Guided`, as `cfg` and `compose` make it.
    """
    if not isinstance(D, Guided):
        raise ValueError("ddim_cfgpp needs the prediction without guidance too: a D of cfg or compose has it")
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        guided, _, unguided, _ = D.predict(x, sigmas[i], "all")
        denoised = unguided + share * (guided - unguided)
        down, up = ancestral(sigma, sigma_next, eta)
        x = noised(denoised + (down / sigma) * (x - unguided), up, noise)
        yield Step(i, sigma, x, denoised)


def ddpm(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Ancestral sampling with the posterior's variance beta tilde (Ho et al. 2020, equations 6 and 7): eta 1.

    Where the network predicts a variance, it is that one, between beta tilde and beta (Nichol and Dhariwal 2021).
    """
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        made = D.predict(x, sigmas[i], "guided") if isinstance(D, Guided) else None
        denoised = made.guided if made else D(x, sigmas[i])
        down, up = ancestral(sigma, sigma_next, 1.0)
        fresh = noised(torch.zeros_like(x), up, noise)
        if made and made.variance.shape[1] and up:
            largest = (1 + sigma_next**-2) / (1 + sigma**-2)  # beta over beta tilde
            fresh = fresh * largest ** ((made.variance + 1) / 4)
        x = toward(x, denoised, sigma, down) + fresh
        yield Step(i, sigma, x, denoised)


def dpm_2_ancestral(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """The midpoint method to below the next sigma, then fresh noise. eta 0 is `dpm_2`."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        down, up = ancestral(sigma, sigma_next, eta)
        x = noised(midpoint(D, x, denoised, sigmas, sigma, down), up, noise)
        yield Step(i, sigma, x, denoised)


def dpmpp_2s_ancestral(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r = 1/2) to below the next sigma, then fresh noise.

    Second order at eta 0; two calls a step.
    """
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = aim = D(x, sigmas[i])
        down, up = ancestral(sigma, sigma_next, eta)
        if down > 0:
            middle = math.sqrt(sigma * down)
            aim = D(toward(x, denoised, sigma, middle), sigmas.new_tensor(middle))
        x = noised(toward(x, aim, sigma, down), up, noise)
        yield Step(i, sigma, x, denoised)
