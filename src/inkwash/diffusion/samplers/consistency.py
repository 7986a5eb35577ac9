"""Samplers of distilled models, whose predictions in few steps are good pictures. All but the last add noise."""

import math
from collections.abc import Iterator

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.step import Noise, Step, noised, pairs, toward
from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas

STABLE_DIFFUSION = NoiseSchedule.from_betas(sqrt_linear_betas())


def lcm(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; for latents Luo et al. 2023, algorithm 3)."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        x = noised(denoised, sigma_next, noise)
        yield Step(i, sigma, x, denoised)


def tcd(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 0.3,
    schedule: NoiseSchedule = STABLE_DIFFUSION,
) -> Iterator[Step]:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, algorithm 4).

    Each step goes down to the timestep (1 - eta) t, t that of the next sigma, and up to it by noise; eta, the paper's
    gamma, is `ddim` at 0 and all but `lcm` at 1. schedule: of the timesteps, which are not rounded.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta} is not in 0 to 1")
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        below = float(schedule.sigma((1 - eta) * schedule.t(sigmas[i + 1])))
        down = min(sigma_next, below) if eta else sigma_next
        x = noised(toward(x, denoised, sigma, down), math.sqrt(sigma_next**2 - down**2), noise)
        yield Step(i, sigma, x, denoised)
