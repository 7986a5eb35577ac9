"""Denoisers, made from networks by their prediction type. B batch, C channels, H W latent size.

x is in variance-exploding units: x = x0 + sigma * noise.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule

Conditioning = Mapping[str, Tensor]  # keyword arguments of the network, such as context (B, T, D)
# of EDM, what the network gives: the std of the data that it expects, and the sign of its output
EDM = {"edm": (0.5, 1.0), "edm_v": (1.0, -1.0)}
PREDICTIONS = ("eps", "v", "x0", *EDM)


class Denoiser(Protocol):
    """D: x (B, C, H, W) and its sigma, a scalar or (B,), in units of the scaled latent, to the expected x0."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


class ConditionedDenoiser(Protocol):
    """A denoiser that also takes conditions, keyword arguments of the network by name."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor: ...


def precondition(
    network: Callable[..., Tensor], prediction: str, schedule: NoiseSchedule
) -> ConditionedDenoiser:
    """A denoiser from a network that was trained on unit-variance inputs and timesteps.

    network: called as network(x, t, **cond), t (B,) float. prediction: what it gives, eps (Ho et al. 2020), v (Salimans and
    Ho 2022), x0, or one of EDM, whose t is log(sigma) / 4 (Karras et al. 2022, table 1). Further channels that it gives
    stay behind x0 as they are: the logarithm of a step's variance, -1 the least and 1 the largest that it may be (Nichol and
    Dhariwal 2021, equation 15), which IF's networks predict. Raises ValueError for another prediction.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        sigma = (
            torch.as_tensor(sigma, dtype=torch.float64).cpu().expand(len(x))
        )  # never rounded to a half type
        if prediction in EDM:
            std, sign = EDM[prediction]
            total = (sigma.square() + std**2).sqrt()
            out = network(x / shaped(total, x), (sigma.log() / 4).to(x.device, torch.float32), **cond)
            return shaped((std / total).square(), x) * x + shaped(sign * sigma * std / total, x) * out
        signal = 1 / (sigma.square() + 1).sqrt()  # sqrt(alpha_bar)
        made = network(x * shaped(signal, x), schedule.t(sigma).to(x.device, torch.float32), **cond)
        out, variance = made[:, : x.shape[1]], made[:, x.shape[1] :]
        if prediction == "eps":
            out = x - shaped(sigma, x) * out
        elif prediction == "v":
            out = shaped(signal.square(), x) * x - shaped(sigma * signal, x) * out
        return torch.cat([out, variance], dim=1) if variance.shape[1] else out

    return denoise


def clipped(denoise: ConditionedDenoiser) -> ConditionedDenoiser:
    """The denoiser of pixels, which are in [-1, 1], kept to that range (as in the code of Ho et al. 2020)."""

    def kept(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        made = denoise(x, sigma, cond)
        return torch.cat([made[:, : x.shape[1]].clamp(-1, 1), made[:, x.shape[1] :]], dim=1)

    return kept


def shaped(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, ...) beside x."""
    return values.to(x.device, x.dtype).view(-1, *(1,) * (x.ndim - 1))
