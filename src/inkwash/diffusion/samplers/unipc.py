"""UniPC: a predictor and a corrector that share each call (Zhao et al. 2023).

With lambda = -log sigma the flow is x(lambda') = sigma'/sigma x + sigma' * integral of e^lambda D. Predictor and
corrector put the polynomial through the last predictions in D's place; the corrector's goes through the new one.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.multistep import exponential
from inkwash.diffusion.samplers.step import Noise, Step, pairs, toward


def unipc(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    order: int = 3,
    variant: str = "bh1",
) -> Iterator[Step]:
    """UniPC (Zhao et al. 2023, algorithms 5 and 6) of order 1 to 3, one call a step, fewer predictions at both ends.

    variant: B(h), bh1 h or bh2 e^h - 1, which matters to the predictor of two predictions and to the corrector of
    one alone. bh1 and order 3 are the defaults of the authors' code and of A1111; diffusers' are bh2 and 2.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order {order} is not in 1 to 3")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant {variant!r} is not bh1 or bh2")
    known: list[tuple[float, Tensor]] = []  # lambdas and predictions, the newest first
    before, num, steps = x, 0, pairs(sigmas)
    for i, (sigma, sigma_next) in enumerate(steps):
        denoised = D(x, sigmas[i])
        here = (-math.log(sigma), denoised)
        if known:
            x = toward(before, known[0][1], steps[i - 1][0], sigma)
            x = x + correction(variant, sigma, [*known[:num], here], half=num == 1)
        known = [here, *known[: order - 1]]
        before, num = x, min(order, i + 1, len(steps) - i)
        x = toward(x, denoised, sigma, sigma_next)
        if num > 1:
            x = x + correction(variant, sigma_next, known[:num], half=num == 2)
        yield Step(i, sigma, x, denoised)


def correction(variant: str, end: float, known: list[tuple[float, Tensor]], half: bool) -> Tensor:
    """The term that other predictions add to a step from the first of `known` to sigma `end`.

    half: instead of the integral, B(h) / 2 times the slope through the two predictions that there are then.
    """
    (start, first), *others = known
    h = -math.log(end) - start
    if half:
        place, value = others[0]
        width = h if variant == "bh1" else -math.expm1(-h)
        return width / 2 * h / (place - start) * (value - first)
    weights = exponential([place for place, _ in known], start, start + h)[1:]
    total = end * weights[0] * (others[0][1] - first)
    for weight, (_, value) in zip(weights[1:], others[1:], strict=True):
        total = total + end * weight * (value - first)
    return total
