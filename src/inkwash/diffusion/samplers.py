"""Samplers: generators over a denoiser, in variance-exploding coordinates. B batch, C channels, H W latent size.

Every sampler is `f(D, x, sigmas, *, noise=None, **options)`:
    D       denoiser, x and sigma to x0
    x       (B, C, H, W), noise times sigmas[0]
    sigmas  float64 (n+1,), falling, the last one 0 or more
    noise   gives the next standard normal draw of x's shape; what adds noise needs it
and yields a Step after each of the n steps. Leaving the loop stops it.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser

Noise = Callable[[], Tensor]
Sampler = Callable[..., Iterator["Step"]]


class Step(NamedTuple):
    """What a step did: it started at `sigma`, predicted `denoised` there, and arrived at `x`."""

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


def euler(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 1). First order."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        x = toward(x, denoised, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def heun(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithm 1). Second order, two calls a step but for the one to 0."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        ahead = toward(x, denoised, sigma, sigma_next)
        if sigma_next > 0:
            slope = ((x - denoised) / sigma + (ahead - D(ahead, sigmas[i + 1])) / sigma_next) / 2
            ahead = x + slope * (sigma_next - sigma)
        x = ahead
        yield Step(i, sigma, x, denoised)


def euler_ancestral(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 1.0
) -> Iterator[Step]:
    """Euler to below the next sigma, then fresh noise up to it. eta 0 is `euler`, 1 the usual."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        # the variance of the step back in a chain from sigma_next to sigma
        up = min(sigma_next, eta * sigma_next / sigma * math.sqrt(sigma**2 - sigma_next**2))
        x = toward(x, denoised, sigma, math.sqrt(sigma_next**2 - up**2))
        x = x + up * drawn(noise) if up else x
        yield Step(i, sigma, x, denoised)


def ddim(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, equation 12; eta by equation 16). In sigmas it is the ancestral step:

    their added noise, over sqrt(alpha_bar_next), is eta * sigma_next * sqrt(1 - sigma_next^2 / sigma^2).
    """
    return euler_ancestral(D, x, sigmas, noise=noise, eta=eta)


def ddpm(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Ancestral sampling with the posterior's variance beta tilde (Ho et al. 2020, equations 6 and 7): eta 1."""
    return euler_ancestral(D, x, sigmas, noise=noise, eta=1.0)


def dpmpp_2m(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). Second order, one call a step; the one to 0 is first order."""
    previous, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        aim = denoised
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)  # lambda = -log sigma
            if previous is not None:
                aim = denoised + (denoised - previous) * (h / (2 * h_last))
            h_last = h
        x = toward(x, aim, sigma, sigma_next)
        previous = denoised
        yield Step(i, sigma, x, denoised)


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
}


def pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    """Each sigma and the next."""
    values = sigmas.tolist()
    return list(zip(values[:-1], values[1:], strict=True))


def toward(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The straight way from x at sigma to its x0, as far as sigma_next."""
    return denoised + (sigma_next / sigma) * (x - denoised)


def drawn(noise: Noise | None) -> Tensor:
    if noise is None:
        raise ValueError(
            "this sampler adds noise: give it a source, such as NoiseSource([seed], x.shape[1:])"
        )
    return noise()
