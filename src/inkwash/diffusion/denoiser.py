"""From a network to a denoiser. B batch, C channels, H W latent size.

x is in variance-exploding units: x = x0 + sigma * noise.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule

Conditioning = Mapping[str, Tensor]  # keyword arguments of the network, such as context (B, T, D)
PREDICTIONS = ("eps", "v", "x0")


class Denoiser(Protocol):
    """D: x (B, C, H, W) and its sigma, a scalar or (B,), in units of the scaled latent, to the expected x0."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


class ConditionedDenoiser(Protocol):
    """The same, of what the network is given besides."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor: ...


def precondition(
    network: Callable[..., Tensor], prediction: str, schedule: NoiseSchedule
) -> ConditionedDenoiser:
    """A denoiser from a network that was trained on unit-variance inputs and timesteps.

    network: called as network(x, t, **cond), t (B,) float. prediction: what it gives, eps (Ho et al. 2020),
    v (Salimans and Ho 2022) or x0. Raises ValueError for another one.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        sigma = (
            torch.as_tensor(sigma, dtype=torch.float64).cpu().expand(len(x))
        )  # never rounded to a half type
        signal = 1 / (sigma.square() + 1).sqrt()  # sqrt(alpha_bar)
        out = network(x * shaped(signal, x), schedule.t(sigma).to(x.device, torch.float32), **cond)
        if prediction == "eps":
            return x - shaped(sigma, x) * out
        if prediction == "v":
            return shaped(signal.square(), x) * x - shaped(sigma * signal, x) * out
        return out

    return denoise


def shaped(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, ...) beside x."""
    return values.to(x.device, x.dtype).view(-1, *(1,) * (x.ndim - 1))
