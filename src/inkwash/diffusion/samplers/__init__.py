"""Samplers: generators over a denoiser, in variance-exploding coordinates. B batch, C channels, H W latent size.

Every sampler is `f(D, x, sigmas, *, noise=None, **options)`:
    D       denoiser, x and sigma to x0
    x       (B, C, H, W), noise times sigmas[0]
    sigmas  float64 (n+1,), falling, the last one 0 or more
    noise   where draws of x's shape come from; what adds noise needs it
and yields a Step after each of the n steps; dpm_fast, dpm_adaptive and restart may have another number of them.
Leaving the loop stops it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from inkwash.diffusion.samplers.ancestral import (
    ddim,
    ddim_cfgpp,
    ddpm,
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    euler_ancestral,
)
from inkwash.diffusion.samplers.consistency import lcm, tcd
from inkwash.diffusion.samplers.dpm_solver import dpm_adaptive, dpm_fast
from inkwash.diffusion.samplers.multistep import deis, dpmpp_2m, ipndm, ipndm_v, lms, plms
from inkwash.diffusion.samplers.restart import restart
from inkwash.diffusion.samplers.sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from inkwash.diffusion.samplers.singlestep import dpm_2, euler, heun, heunpp2
from inkwash.diffusion.samplers.step import Step
from inkwash.diffusion.samplers.unipc import unipc

__all__ = ["SAMPLERS", "Sampler", "Step"]

Sampler = Callable[..., Iterator[Step]]
SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddim_cfgpp": ddim_cfgpp,
    "ddpm": ddpm,
    "deis": deis,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpm_adaptive": dpm_adaptive,
    "dpm_fast": dpm_fast,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": partial(dpmpp_2m_sde, solver="heun"),
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": dpmpp_sde,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "heunpp2": heunpp2,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "lcm": lcm,
    "lms": lms,
    "plms": plms,
    "restart": restart,
    "tcd": tcd,
    "unipc": unipc,
    "unipc_bh2": partial(unipc, variant="bh2"),
}
