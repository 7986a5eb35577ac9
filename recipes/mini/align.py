"""The noise levels that suit `mini` best (Align Your Steps), found exactly.

Sabour et al. 2024 bound how far n steps are from the flow by the sum, over the steps, of how much the denoiser changes
within each. Here every such change is measured once, on a fine grid of levels, and the best n levels are a shortest way.

K levels of the grid, B batch, n steps.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.pipeline.model import Model
from recipes.mini import evaluate as measures
from recipes.mini.classifier import Judge
from recipes.mini.drawing import drawn
from recipes.mini.fast import Captioned
from recipes.mini.tasks import Beside

NUM_LEVELS = 64
PICTURES = 512
EXACT = "donot_use_mm_for_euclid_dist"  # differences of neighbours are small


@torch.inference_mode()
def changes(
    model: Model, data: Captioned, num: int = PICTURES, num_levels: int = NUM_LEVELS, batch: int = 64
) -> tuple[Tensor, Tensor]:
    """Sigmas (K,), rising, and the mean squared changes (K, K) of the denoised latent from each to each.

    The noise of a picture at all levels is one Brownian path, as in the bound of section 3.
    """
    schedule, batch = model.schedule, min(batch, num)
    sigmas = torch.linspace(0, len(schedule.alphas_cumprod) - 1, num_levels, dtype=torch.float64)
    sigmas = schedule.sigma(sigmas.round())
    variances = sigmas.square().diff(prepend=torch.zeros(1, dtype=torch.float64)).tolist()
    denoise = precondition(model.network(), model.prediction, schedule)
    total = torch.zeros(num_levels, num_levels, dtype=torch.float64)
    for _ in range(0, num, batch):
        pictures, rows = data.draw(batch)
        x, cond, made = data.latents(pictures), {"context": data.contexts[rows].float()}, []
        for sigma, variance in zip(sigmas, variances, strict=True):
            x = x + variance**0.5 * torch.randn_like(x)
            made.append(denoise(x, sigma, cond).flatten(1))
        every = torch.stack(made).flatten(1)
        total += torch.cdist(every, every, compute_mode=EXACT).square().double().cpu() / every.shape[1]
    total = total / -(-num // batch)
    return sigmas, total


def costs(sigmas: Tensor, changed: Tensor) -> Tensor:
    """Cost (K, K) of a step from level j down to level i < j in the bound: the integral of the change over sigma^3."""
    values = changed / sigmas.pow(3)[:, None]  # at each level, of what was predicted at another one
    made = torch.full_like(changed, torch.inf)
    for j in range(len(sigmas)):
        for i in range(j):
            made[i, j] = torch.trapezoid(values[i : j + 1, j], sigmas[i : j + 1])
    return made


def aligned(sigmas: Tensor, cost: Tensor, steps: int) -> Tensor:
    """The n levels, falling, from the highest to the lowest, whose n - 1 steps cost least; after the last comes 0.

    Raises ValueError for fewer than two steps, or more than there are levels.
    """
    num = len(sigmas)
    if not 2 <= steps <= num:
        raise ValueError(f"steps {steps} is not in 2 to {num}")
    best = torch.full((num,), torch.inf, dtype=torch.float64)
    best[-1] = 0.0
    came: list[Tensor] = []
    for _ in range(steps - 1):  # best[i]: of arriving at level i in so many steps
        through = cost + best[None]
        best, source = through.min(dim=1)
        came.append(source)
    way = [0]
    for source in reversed(came):
        way.append(int(source[way[-1]]))
    return sigmas[way[::-1]]


def timesteps(model: Model, sigmas: Tensor) -> Sequence[int]:
    """Integer timesteps of noise levels, as `--timesteps` takes them."""
    return [int(t) for t in model.schedule.t(sigmas).round()]


def figures(
    model: Model,
    judge: Judge,
    names: Sequence[str],
    data: Path,
    found: Tensor,
    cfg_scale: float,
    others: Sequence[str] = ("align_your_steps", "beta", "karras", "kl_optimal", "simple", "uniform"),
) -> dict[str, dict[str, float]]:
    """Recognition of the fixed prompts by the judge, with optimised sigmas (n+1,) and with other schedules of n steps."""
    ways = {"aligned": found, **{name: SCHEDULES[name](len(found), model.schedule) for name in others}}
    made = {}
    for name, sigmas in ways.items():
        draw = partial(drawn, model, seen=Beside(), cfg_scale=cfg_scale, sigmas=sigmas)
        made[name] = measures.judged_prompts(judge, names, data, draw)
    return made
