"""Samplers of the probability-flow ODE that remember earlier steps: one call a step, of higher order."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.step import Noise, Step, pairs, toward


def lms(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 4
) -> Iterator[Step]:
    """Adams-Bashforth over uneven steps, in sigma: the slopes' polynomial is integrated. Of order 1 to 4."""
    if not 1 <= order <= 4:
        raise ValueError(f"order {order} is not in 1 to 4")
    slopes: deque[Tensor] = deque(maxlen=order)  # the newest first
    values = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        slopes.appendleft((x - denoised) / sigma)
        nodes = values[max(0, i - order + 1) : i + 1][::-1]
        for j, slope in enumerate(slopes):
            x = x + slope * integral(nodes, j, sigma, sigma_next)
        yield Step(i, sigma, x, denoised)


def integral(nodes: Sequence[float], j: int, start: float, end: float) -> float:
    """Of the polynomial that is 1 at node j and 0 at the others, from start to end."""
    half, middle = (end - start) / 2, (end + start) / 2
    total = 0.0
    for place in (-math.sqrt(1 / 3), math.sqrt(1 / 3)):  # Gauss's two points are exact up to degree 3
        at = middle + half * place
        total += half * math.prod((at - n) / (nodes[j] - n) for k, n in enumerate(nodes) if k != j)
    return total


def dpmpp_2m(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2). Second order; the step to 0 is first order."""
    previous, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = aim = D(x, sigmas[i])
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)  # lambda = -log sigma
            if previous is not None:
                aim = denoised + (denoised - previous) * (h / (2 * h_last))
            h_last = h
        x = toward(x, aim, sigma, sigma_next)
        previous = denoised
        yield Step(i, sigma, x, denoised)
