"""The samplers' common part."""

import math
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import Tensor


class Step(NamedTuple):
    """The result of a step: it started at `sigma`, predicted `denoised` there, and arrived at `x`."""

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


class Noise(Protocol):
    """Standard normal draws of x's shape; `NoiseSource` is one."""

    def __call__(self) -> Tensor:
        """The next one."""
        ...

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The part of a Brownian path from sigma to sigma_next."""
        ...


def pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    """Each sigma and the next."""
    values = sigmas.tolist()
    return list(pairwise(values))


def toward(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The straight way from x at sigma to its x0, as far as sigma_next.

    It solves the flow exactly where the denoiser stays as it is, so it is Euler's step, DDIM's, and the first
    order of the DPM-Solver++ family.
    """
    return denoised + (sigma_next / sigma) * (x - denoised)


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """The sigma to step down to and the noise to add, to arrive at sigma_next. eta 1: the chain's own variance."""
    up = min(sigma_next, eta * sigma_next / sigma * math.sqrt(sigma**2 - sigma_next**2))
    return math.sqrt(sigma_next**2 - up**2), up


def noised(x: Tensor, std: float, noise: Noise | None, *between: float) -> Tensor:
    """x with noise of this std: the next draw, or the one of a Brownian path between two sigmas."""
    if std == 0:
        return x
    if noise is None:
        raise ValueError(
            "this sampler adds noise: give it a source, such as NoiseSource([seed], x.shape[1:])"
        )
    return x + std * (noise.between(*between) if between else noise())
