"""Samplers of the probability-flow ODE that look at one step only."""

import math
from collections.abc import Iterator

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.step import Noise, Step, pairs, toward


def euler(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Euler's method (Karras et al. 2022, algorithm 1). First order."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        x = toward(x, denoised, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def heun(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithm 1). Second order, two calls a step but for the one to 0."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        x = trapezoid(D, x, denoised, sigmas, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def heunpp2(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """Heun++: the mean of the slopes here and at the next two sigmas, these weighed by sigma over the first one.

    ComfyUI's and Forge's, of no paper; the last but one step has two slopes, the last one. As the weights are
    not those of a quadrature, it is of first order, with three calls a step.
    """
    values = sigmas[:-1].tolist()
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        ahead, slope = x, (x - denoised) / sigma
        total = last = slope
        seen = values[i + 1 : i + 3]
        for k, at in enumerate(seen, i):
            ahead = ahead + (at - values[k]) * last
            last = (ahead - D(ahead, sigmas[k + 1])) / at
            total = total + at / ((len(seen) + 1) * values[0]) * (last - slope)
        x = x + (sigma_next - sigma) * total
        yield Step(i, sigma, x, denoised)


def dpm_2(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """The midpoint method, in log sigma (after DPM-Solver-2, Lu et al. 2022a). Second order, two calls a step."""
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        x = midpoint(D, x, denoised, sigmas, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def midpoint(
    D: Denoiser, x: Tensor, denoised: Tensor, sigmas: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """The step of `dpm_2`: the slope of halfway taken all the way. To 0, where there is no halfway, Euler's."""
    if sigma_next == 0:
        return toward(x, denoised, sigma, sigma_next)
    middle = math.sqrt(sigma * sigma_next)
    ahead = toward(x, denoised, sigma, middle)
    slope = (ahead - D(ahead, sigmas.new_tensor(middle))) / middle
    return x + slope * (sigma_next - sigma)


def trapezoid(
    D: Denoiser, x: Tensor, denoised: Tensor, sigmas: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """The step of `heun`: the mean of the slopes at both ends. To 0, where there is none, Euler's."""
    ahead = toward(x, denoised, sigma, sigma_next)
    if sigma_next == 0:
        return ahead
    slope = ((x - denoised) / sigma + (ahead - D(ahead, sigmas.new_tensor(sigma_next))) / sigma_next) / 2
    return x + slope * (sigma_next - sigma)
