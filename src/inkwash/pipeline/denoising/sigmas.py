"""Noise levels from a request's schedule, steps and strength."""

import math

import torch
from torch import Tensor

from inkwash.diffusion.schedules import SCHEDULES, USUAL, NoiseSchedule, ending, tail
from inkwash.pipeline.request import Request


def make_sigmas(request: Request, num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """The sigmas (num_steps + 1,) of the request's schedule; "automatic" is the sampler's usual one.

    With timesteps they are those of these, and sigmas are given, whatever num_steps says. Raises ValueError for one that
    training had not.
    """
    if request.sigmas:
        largest = schedule.sigma_max
        if request.sigmas[0] > 1.01 * largest:  # published ones are rounded
            raise ValueError(f"sigma {request.sigmas[0]:g} is above {largest:.4g}, the model's own largest")
        return ending(torch.tensor(request.sigmas, dtype=torch.float64))
    if request.timesteps:
        last = len(schedule.alphas_cumprod) - 1
        if request.timesteps[0] > last:
            raise ValueError(f"timestep {request.timesteps[0]} is not in 0 to {last}, the model's own")
        return ending(schedule.sigmas[list(request.timesteps)])
    automatic = USUAL.get(request.sampler, "uniform")
    return SCHEDULES[automatic if request.schedule == "automatic" else request.schedule](num_steps, schedule)


def noise_spread(request: Request, sigmas: Tensor, schedule: NoiseSchedule) -> float:
    """The standard deviation of the first x of a picture that begins as noise: the first sigma.

    Where the request's timesteps begin before the last one, it is such that the network sees noise of variance 1, which is
    what diffusers gives it, and what networks of one step were trained on: DMD2's at 399, Hyper-SD's at 800.
    """
    sigma = sigmas[0].item()
    early = request.timesteps and request.timesteps[0] < len(schedule.alphas_cumprod) - 1
    return math.hypot(1, sigma) if early else sigma


def sigmas_for_strength(
    request: Request,
    strength: float,
    schedule: NoiseSchedule,
    rule: str = "a1111",
    num_steps: int | None = None,
) -> Tensor:
    """The sigmas (n + 1,) at the end of the schedule that a strength in (0, 1] starts from.

    num_steps: by default the request's. rule: see `diffusion.schedules.tail`.
    """
    return tail(num_steps or request.steps, strength, rule, lambda n: make_sigmas(request, n, schedule))
