"""For Gaussian data the denoiser and the flow are exact, so samplers are measured against the truth.

With data N(mu, s^2) on each axis, D(x, sigma) = mu + s^2 / (s^2 + sigma^2) (x - mu), and the probability-flow
ODE carries x at sigma_a to mu + (x - mu) sqrt((s^2 + sigma_b^2) / (s^2 + sigma_a^2)) at sigma_b.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, karras, sqrt_linear_betas

MU = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
S = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 3, 1, 1)  # anisotropic


def D(x: Tensor, sigma: Tensor) -> Tensor:
    return MU + S**2 / (S**2 + sigma**2) * (x - MU)


def flow(x: Tensor, start: float, end: float) -> Tensor:
    return MU + (x - MU) * ((S**2 + end**2) / (S**2 + start**2)).sqrt()


def grid(num_steps: int, high: float = 20.0, low: float = 0.05) -> Tensor:
    """Even in sigma^(1/7), ending above 0: the last step to 0 is of first order by design."""
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), num_steps + 1, dtype=torch.float64) ** 7


STOCHASTIC = [name for name in SAMPLERS if name.endswith(("ancestral", "sde", "sde_heun"))] + ["ddpm"]


def last(sampler: str, x: Tensor, sigmas: Tensor, **options: object) -> Tensor:
    for step in SAMPLERS[sampler](D, x, sigmas, **options):
        x = step.x
    return x


ORDERS = {  # multistep samplers start with a first-order step, which leaves an error of h^2
    "euler": 1,
    "euler_ancestral": 1,
    "ddim": 1,
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2,
    "dpmpp_sde": 2,
    "dpmpp_3m_sde": 2,
    "lms": 2,
}


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence(sampler: str) -> None:
    """On the flow, so with eta 0."""
    order, options = ORDERS[sampler], {"eta": 0.0} if sampler in STOCHASTIC else {}
    options |= (
        {"order": 2} if sampler == "lms" else {}
    )  # of 4, the first steps' errors weigh too little to see
    x = 20 * torch.randn(64, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = [64, 128, 256, 512]
    errors = []
    for num_steps in counts:
        sigmas = grid(num_steps)
        errors.append(
            float((last(sampler, x, sigmas, **options) - flow(x, 20.0, float(sigmas[-1]))).abs().max())
        )
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, (sampler, slope, errors)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_reproduce_the_data(sampler: str) -> None:
    shape, num = (3, 64, 64), 4
    noise = NoiseSource(range(num), shape, dtype=torch.float64)
    num_steps = 100 if sampler.startswith("dpm") else 1000  # these are of second order
    sigmas = torch.cat([grid(num_steps, low=0.005), torch.zeros(1, dtype=torch.float64)])
    made = last(sampler, MU + noise() * (S**2 + 20.0**2).sqrt(), sigmas, noise=noise)
    count = num * 64 * 64
    mean, std = made.mean(dim=(0, 2, 3)), made.std(dim=(0, 2, 3))
    wanted_mean, wanted_std = MU.flatten(), S.flatten()
    assert ((mean - wanted_mean).abs() < 5 * wanted_std / math.sqrt(count)).all()
    assert ((std / wanted_std - 1).abs() < 0.025).all(), std / wanted_std


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_one_point_of_data_is_reached_exactly(sampler: str) -> None:
    """Where all data is one point, every sampler ends on it, and says what it predicted on the way."""
    point = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = NoiseSource([5, 6], (3, 4, 4), dtype=torch.float64)
    sigmas = karras(9, NoiseSchedule.from_betas(sqrt_linear_betas()))
    x = point + noise() * sigmas[0]
    steps = list(SAMPLERS[sampler](lambda x, sigma: point, x, sigmas, noise=noise))
    assert [step.index for step in steps] == list(range(9))
    assert [step.sigma for step in steps] == sigmas[:-1].tolist()
    assert torch.equal(steps[-1].denoised, point)
    torch.testing.assert_close(steps[-1].x, point, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_noise_is_asked_for(sampler: str) -> None:
    with pytest.raises(ValueError, match="NoiseSource"):
        last(sampler, torch.zeros(1, 3, 1, 1, dtype=torch.float64), grid(4))
