"""From a request's schedule, steps and strength to noise levels."""

from torch import Tensor

from inkwash.diffusion.schedules import SCHEDULES, USUAL, NoiseSchedule, tail
from inkwash.pipeline.request import Request


def make_sigmas(request: Request, num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """The sigmas (num_steps + 1,) of the request's schedule; "automatic" is the sampler's usual one."""
    automatic = USUAL.get(request.sampler, "uniform")
    return SCHEDULES[automatic if request.schedule == "automatic" else request.schedule](num_steps, schedule)


def sigmas_for_strength(
    request: Request,
    strength: float,
    schedule: NoiseSchedule,
    rule: str = "a1111",
    num_steps: int | None = None,
) -> Tensor:
    """The sigmas (n + 1,) at the end of the schedule that a strength in (0, 1] starts from.

    num_steps: by default the request's. rule: see `tail`.
    """
    return tail(num_steps or request.steps, strength, rule, lambda n: make_sigmas(request, n, schedule))
