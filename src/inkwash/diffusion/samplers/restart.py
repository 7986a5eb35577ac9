"""Restart: some of the way is walked again, after noise has been put back."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.singlestep import trapezoid
from inkwash.diffusion.samplers.step import Noise, Step, noised
from inkwash.diffusion.schedules import even_in_power


class Restart(NamedTuple):
    """A restart: from sigma `low` back to `high`, and down again in `num_steps`, as often as wanted."""

    low: float
    high: float
    num_steps: int
    times: int


def restart(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    restarts: Sequence[Restart] | None = None,
) -> Iterator[Step]:
    """Restart sampling (Xu et al. 2023, algorithm 2) with the steps of `heun`.

    restarts: their ends are moved to the nearest sigmas. None is A1111's plan: below 20 steps none; from 20 on 9
    steps are spent on going back from 0.1 to 2, from 36 on a quarter of them, twice, and the others are Karras's
    between both ends of sigmas; so there are as many in all.
    """
    if restarts is None:
        sigmas, restarts = planned(sigmas)
    way = sigmas.tolist()
    for low, high, num_steps, times in restarts:
        bottom, top = ((sigmas - level).abs().argmin() for level in (low, high))
        if top < bottom and sigmas[bottom] > 0:
            at = len(way) - way[::-1].index(float(sigmas[bottom]))
            again = even_in_power(float(sigmas[top]), float(sigmas[bottom]), num_steps + 1).tolist()
            way[at:at] = again * times
    index, last = 0, way[0]
    for sigma, sigma_next in pairwise(way):
        if sigma_next > sigma:  # the jump back, which is no step
            continue
        if sigma > last:
            x = noised(x, math.sqrt(sigma**2 - last**2), noise)
        denoised = D(x, sigmas.new_tensor(sigma))
        x = trapezoid(D, x, denoised, sigmas, sigma, sigma_next)
        yield Step(index, sigma, x, denoised)
        index, last = index + 1, sigma_next


def planned(sigmas: Tensor) -> tuple[Tensor, list[Restart]]:
    """A1111's sigmas and restarts for as many steps as these have."""
    num = len(sigmas) - 1
    if num < 20:
        return sigmas, []
    spent, times = (num // 4, 2) if num >= 36 else (9, 1)
    ends = sigmas[sigmas > 0]
    walked = num - spent * times - (len(sigmas) - len(ends)) + 1
    grid = torch.cat([even_in_power(float(ends[0]), float(ends[-1]), walked), sigmas[len(ends) :]])
    return grid, [Restart(0.1, 2.0, spent, times)]
