"""Samplers of the probability-flow ODE that remember earlier steps: one call a step, of higher order."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.samplers.step import Noise, Step, pairs, toward


def lms(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 4
) -> Iterator[Step]:
    """Adams-Bashforth over uneven steps, in sigma: the slopes' polynomial is integrated. Of order 1 to 4."""
    return adams(D, x, sigmas, order, of_steps, euler_to_zero=False)


def integral(nodes: Sequence[float], j: int, start: float, end: float) -> float:
    """Integral from start to end of the polynomial that is 1 at node j and 0 at the others."""
    half, middle = (end - start) / 2, (end + start) / 2
    total = 0.0
    for place in (-math.sqrt(1 / 3), math.sqrt(1 / 3)):  # Gauss's two points are exact up to degree 3
        at = middle + half * place
        total += half * math.prod((at - n) / (nodes[j] - n) for k, n in enumerate(nodes) if k != j)
    return total


def of_steps(nodes: Sequence[float], end: float) -> list[float]:
    """Weights of slopes at these sigmas, the newest first, for the step from it to `end`."""
    return [integral(nodes, j, nodes[0], end) for j in range(len(nodes))]


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


# Adams-Bashforth's weights where steps are even, the newest slope first (Liu et al. 2022, equation 12)
EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None) -> Iterator[Step]:
    """PLMS (Liu et al. 2022, algorithm 2, as LDM starts it): even weights of four slopes, Heun's step first.

    One call more than steps. The published one ends at the first alpha_bar: give it `ddim(..., to_zero=False)`.
    The weights are those of even steps, which sigmas are not: second order.
    """
    slopes: deque[Tensor] = deque(maxlen=4)
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        slopes.appendleft((x - denoised) / sigma)
        slope = sum(weight * value for weight, value in zip(EVEN[len(slopes) - 1], slopes, strict=True))
        if i == 0 and sigma_next > 0:
            ahead = toward(x, denoised, sigma, sigma_next)
            slope = (slope + (ahead - D(ahead, sigmas[1])) / sigma_next) / 2
        x = x + slope * (sigma_next - sigma)
        yield Step(i, sigma, x, denoised)


def ipndm(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 4
) -> Iterator[Step]:
    """iPNDM (Zhang and Chen 2023, appendix H.2): PLMS that begins with fewer slopes. Weights of even steps.

    So it is of second order, whatever its `order`, 1 to 4, where sigmas are not even; the step to 0 is Euler's.
    """
    weights = lambda nodes, end: [(end - nodes[0]) * w for w in EVEN[len(nodes) - 1]]  # noqa: E731
    return adams(D, x, sigmas, order, weights)


def ipndm_v(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 4
) -> Iterator[Step]:
    """iPNDM with the weights of the steps as they are, so `lms` but for the step to 0, which is Euler's."""
    return adams(D, x, sigmas, order, of_steps)


def deis(
    D: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, order: int = 3
) -> Iterator[Step]:
    """DEIS (Zhang and Chen 2023, equation 15) with the slopes' polynomial in log sigma. Of order 1 to 4.

    The step to 0, where there is no logarithm, is Euler's.
    """

    def weights(nodes: Sequence[float], end: float) -> list[float]:
        if end == 0:
            return [end - nodes[0]]
        return [-w for w in exponential([math.log(n) for n in nodes], math.log(end), math.log(nodes[0]))]

    return adams(D, x, sigmas, order, weights)


def adams(
    D: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    order: int,
    weights: Callable[[Sequence[float], float], list[float]],
    euler_to_zero: bool = True,
) -> Iterator[Step]:
    """Steps along a weighted sum of the last `order` slopes, 1 to 4; the one to 0 may be Euler's.

    weights: of the sigmas of the slopes, the newest first, and the next sigma.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order {order} is not in 1 to 4")
    slopes: deque[Tensor] = deque(maxlen=order)  # the newest first
    values = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairs(sigmas)):
        denoised = D(x, sigmas[i])
        slopes.appendleft((x - denoised) / sigma)
        num = 1 if euler_to_zero and sigma_next == 0 else len(slopes)
        nodes = values[i + 1 - num : i + 1][::-1]
        for weight, slope in zip(weights(nodes, sigma_next), list(slopes)[:num], strict=True):
            x = x + slope * weight
        yield Step(i, sigma, x, denoised)


def exponential(nodes: Sequence[float], low: float, high: float) -> list[float]:
    """The weights of values at nodes u that integrate their polynomial times e^u from low to high.

    With s = (u - low) / h they are exact for all powers of s: their moments are those of e^(h s), whose series
    has positive terms only, so no digits cancel however small h is.
    """
    h = high - low
    powers = range(len(nodes))
    moments = [sum(h**n / (math.factorial(n) * (n + k + 1)) for n in range(60)) for k in powers]
    places = torch.tensor([(u - low) / h for u in nodes], dtype=torch.float64)
    solved = torch.linalg.solve(
        torch.stack([places**k for k in powers]), torch.tensor(moments, dtype=torch.float64)
    )
    return (h * math.exp(low) * solved).tolist()
