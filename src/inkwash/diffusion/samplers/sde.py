"""Samplers of the reverse SDE. Their noise is a Brownian path of the seed, so more steps refine one picture.

With lambda = -log sigma and h its step, the SDE of weight eta (1 the reverse diffusion, 0 the flow) forgets by
exp(-(1 + eta) h) and adds noise of variance sigma_next^2 (1 - exp(-2 eta h)) (Lu et al. 2022b, appendix B).
"""

import math
from collections.abc import Iterator

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.step import Noise, Step, ancestral, noised, pairs, toward


def dpmpp_sde(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0, r: float = 0.5
) -> Iterator[Step]:
    """DPM-Solver++(2S) on the SDE: an ancestral step to the fraction r of lambda's way, then one with both aims."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        if sigma_next == 0:
            x = denoised
        else:
            middle = sigma ** (1 - r) * sigma_next**r
            down, up = ancestral(sigma, middle, eta)
            ahead = noised(toward(x, denoised, sigma, down), up, noise, sigma, middle)
            aim = denoised + (D(ahead, sigmas.new_tensor(middle)) - denoised) / (2 * r)
            down, up = ancestral(sigma, sigma_next, eta)
            x = noised(toward(x, aim, sigma, down), up, noise, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def dpmpp_2m_sde(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    solver: str = "midpoint",
) -> Iterator[Step]:
    """DPM-Solver++(2M) on the SDE; solver "midpoint" or "heun" weighs the difference of the last two aims."""
    if solver not in ("midpoint", "heun"):
        raise ValueError(f"solver {solver!r} is not midpoint or heun")
    previous, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            both = (1 + eta) * h
            kept = math.exp(-both)
            x = denoised + kept * (x - denoised)
            if previous is not None:
                weight = (1 - kept) / 2 if solver == "midpoint" else 1 - (1 - kept) / both
                x = x + weight * h / h_last * (denoised - previous)
            x = noised(x, added(sigma_next, h, eta), noise, sigma, sigma_next)
            h_last = h
        previous = denoised
        yield Step(i, sigma, x, denoised)


def dpmpp_3m_sde(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """DPM++ 2M SDE with three aims: their first and second differences over lambda.

    The second weighs half of what the integral gives, as in k-diffusion, so at eta 0 it is of second order still.
    """
    aims: list[Tensor] = []
    hs: list[float] = []
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            both = (1 + eta) * h
            x = denoised + math.exp(-both) * (x - denoised)
            phi_2 = 1 - (1 - math.exp(-both)) / both
            if hs:
                r = hs[-1] / h
                slope = (denoised - aims[-1]) / r
                if len(hs) > 1:
                    r_before = hs[-2] / h
                    bend = (slope - (aims[-1] - aims[-2]) / r_before) / (r + r_before)
                    slope = slope + bend * r
                    x = x - (phi_2 / both - 0.5) * bend
                x = x + phi_2 * slope
            x = noised(x, added(sigma_next, h, eta), noise, sigma, sigma_next)
            aims, hs = [*aims[-1:], denoised], [*hs[-1:], h]
        yield Step(i, sigma, x, denoised)


def added(sigma_next: float, h: float, eta: float) -> float:
    """The std of a step's noise."""
    return sigma_next * math.sqrt(-math.expm1(-2 * eta * h))
