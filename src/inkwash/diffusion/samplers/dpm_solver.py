"""DPM-Solver: single steps of up to third order, even in log sigma or as wide as their errors let them be.

Of sigmas these samplers take both ends (and dpm_fast the number); what lies between is their own. Where sigmas end
at 0 they go there from the last positive one, by a step of first order.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser, shaped
from inkwash.diffusion.samplers.step import Noise, Step, ancestral, noised


def dpm_fast(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, eta: float = 0.0
) -> Iterator[Step]:
    """DPM-Solver-fast (Lu et al. 2022a, section 3.4): as many calls as sigmas have steps, three in most of its own.

    Third order, but for a last step or two of fewer calls. eta: noise after each but the last.
    """
    ends = sigmas[sigmas > 0]
    thirds, rest = divmod(len(ends) - 1, 3)
    orders = [3] * thirds + [rest] if rest else [3] * (thirds - 1) + [2, 1] * (thirds > 0)
    high, low = ends.log()[[0, -1]].tolist()
    grid = torch.linspace(high, low, len(orders) + 1, dtype=torch.float64).exp()
    for i, order in enumerate(orders):
        denoised = D(x, grid[i])
        sigma, sigma_next = grid[i : i + 2].tolist()
        down = max(float(grid[-1]), ancestral(sigma, sigma_next, eta)[0])
        x = solved(D, x, denoised, grid[i], grid.new_tensor(down), order)[0]
        x = noised(x, math.sqrt(max(0.0, sigma_next**2 - down**2)) if eta else 0, noise)
        yield Step(i, sigma, x, denoised)
    if sigmas[-1] == 0:
        x = D(x, ends[-1])
        yield Step(len(orders), float(ends[-1]), x, x)


def dpm_adaptive(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0),
    safety: float = 0.81,
) -> Iterator[Step]:
    """DPM-Solver-12 or -23 (Lu et al. 2022a, appendix C.4) with k-diffusion's PID control of the width in log sigma.

    Each picture has steps of its own, by its own errors, so a batch changes nothing: D is called with sigma (B,),
    and a Step is yielded after each round in which some picture's was accepted, with the largest sigma of these.
    eta: noise, drawn in each round. order: 2 or 3. rtol, atol: the error that is let pass. Raises
    FloatingPointError where a prediction is not finite.
    """
    if order not in (2, 3):
        raise ValueError(f"order {order} is not 2 or 3")
    p, i, d = (coefficient / (1.5 if eta else order) for coefficient in pid)
    ends = sigmas[sigmas > 0]
    end = -ends[-1].log()
    place = -ends[0].log().expand(len(x))  # lambda of each picture
    width, before, past, index = torch.full_like(place, h_init), x, [], 0
    while bool((active := place < end - 1e-5).any()):
        aim = torch.minimum(place + width, end)
        sigma, sigma_next = (-place).exp(), (-aim).exp()
        levels = zip(sigma.tolist(), sigma_next.tolist(), strict=True)
        down = sigma.new_tensor([ancestral(*pair, eta)[0] for pair in levels]).clamp(min=float((-end).exp()))
        denoised = D(x, sigma)
        high, low = solved(D, x, denoised, sigma, down, order)
        allowed = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        error = ((low - high) / allowed).flatten(1).square().mean(1).sqrt().double().cpu()
        if not error.isfinite().all():
            raise FloatingPointError("the denoiser's prediction holds values that are not finite")
        inverse = 1 / (error + 1e-8)
        past = past or [inverse, inverse]
        factor = inverse ** (p + i + d) * past[0] ** -(p + 2 * d) * past[1] ** d
        factor = 1 + (factor - 1).atan()
        if eta:
            std = (sigma_next.square() - down.square()).clamp(min=0).sqrt()
            high = high + shaped(std, x) * noised(torch.zeros_like(x), 1.0, noise)
        good = active & (factor >= safety)
        past = [torch.where(good, inverse, past[0]), torch.where(good, past[0], past[1])]
        place, width = torch.where(good, aim, place), width * factor
        taken = shaped(good, x) > 0
        x, before = torch.where(taken, high, x), torch.where(taken, low, before)
        if bool(good.any()):
            yield Step(index, float(sigma[good].max()), x, denoised)
            index += 1
    if sigmas[-1] == 0:
        x = D(x, ends[-1])
        yield Step(index, float(ends[-1]), x, x)


def solved(
    D: Denoiser, x: Tensor, denoised: Tensor, sigma: Tensor, end: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    """x at `end` by DPM-Solver of this order, 1 to 3, and by the one below from the same calls.

    sigma, end: float64, one or (B,). Source: Lu et al. 2022a, algorithms 1 and 2, the places inside the step at
    1/2, or 1/3 and 2/3, of its way in log sigma.
    """
    h = (sigma / end).log().clamp(min=1e-12)  # pictures that have arrived have steps of no width

    def bend(end: Tensor, h: Tensor) -> Tensor:
        """The term that a slope's change, spread evenly over the whole step in log sigma, adds to x on the way to `end`."""
        return shaped(end - (sigma - end) / h, x)

    slope = (x - denoised) / shaped(sigma, x)
    first = x + shaped(end - sigma, x) * slope
    if order == 1:
        return first, first
    middle = sigma * (-h / order).exp()
    ahead = x + shaped(middle - sigma, x) * slope
    change = (ahead - D(ahead, middle)) / shaped(middle, x) - slope
    second = first + order / 2 * shaped(end - sigma, x) * change
    if order == 2:
        return second, first
    late = sigma * (-2 / 3 * h).exp()
    ahead = x + shaped(late - sigma, x) * slope + 2 * bend(late, 2 / 3 * h) * change
    change = (ahead - D(ahead, late)) / shaped(late, x) - slope
    return first + 1.5 * bend(end, h) * change, second
