"""Samplers: generators over a denoiser, in variance-exploding coordinates. B batch, C channels, H W latent size.

Every sampler is `f(D, x, sigmas, *, noise=None, **options)`:
    D       denoiser, x and sigma to x0
    x       (B, C, H, W), noise times sigmas[0]
    sigmas  float64 (n+1,), falling, the last one 0 or more
    noise   where draws of x's shape come from; what adds noise needs it
and yields a Step after each of the n steps. Leaving the loop stops it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from inkwash.diffusion.samplers.ancestral import (
    ddim,
    ddpm,
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    euler_ancestral,
)
from inkwash.diffusion.samplers.multistep import dpmpp_2m, lms
from inkwash.diffusion.samplers.sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from inkwash.diffusion.samplers.singlestep import dpm_2, euler, heun
from inkwash.diffusion.samplers.step import Step

__all__ = ["SAMPLERS", "Sampler", "Step"]

Sampler = Callable[..., Iterator[Step]]
SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": partial(dpmpp_2m_sde, solver="heun"),
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": dpmpp_sde,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "lms": lms,
}
