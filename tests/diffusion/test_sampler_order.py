"""For Gaussian data the denoiser and the flow are exact, so samplers are measured against the truth.

With data N(mu, s^2) on each axis, D(x, sigma) = mu + s^2 / (s^2 + sigma^2) (x - mu), and the probability-flow
ODE carries x at sigma_a to mu + (x - mu) sqrt((s^2 + sigma_b^2) / (s^2 + sigma_a^2)) at sigma_b.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser
from inkwash.diffusion.guidance.compose import Guided, Prediction
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, karras, sqrt_linear_betas

MU = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
S = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 3, 1, 1)  # anisotropic


def D(x: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.reshape(-1, 1, 1, 1)  # of all pictures, or of each
    return MU + S**2 / (S**2 + sigma**2) * (x - MU)


def flow(x: Tensor, start: float, end: float) -> Tensor:
    return MU + (x - MU) * ((S**2 + end**2) / (S**2 + start**2)).sqrt()


def unguided(D: Denoiser) -> Guided:
    return Guided(lambda x, sigma, need: Prediction.same(D(x, sigma), x.shape[1]))


UNGUIDED = unguided(D)  # guidance that changes nothing


def grid(num_steps: int, high: float = 20.0, low: float = 0.05) -> Tensor:
    """Even in sigma^(1/7), ending above 0: the last step to 0 is of first order by design."""
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), num_steps + 1, dtype=torch.float64) ** 7


def graded(num_steps: int) -> Tensor:
    """The same with three tiny steps at both ends, where multistep samplers know too little for their order."""
    whole = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    tiny = torch.arange(1, 4, dtype=torch.float64) / num_steps**2
    places = torch.cat([whole[:1], tiny, whole[1:-1], 1 - tiny.flip(0), whole[-1:]])
    return torch.lerp(grid(1)[:1] ** (1 / 7), grid(1)[1:] ** (1 / 7), places) ** 7


STOCHASTIC = [name for name in SAMPLERS if name.endswith(("ancestral", "sde", "sde_heun"))] + ["ddpm"]
OWN_STEPS = ("dpm_adaptive", "dpm_fast", "restart")  # others than sigmas say


def last(sampler: str, x: Tensor, sigmas: Tensor, **options: object) -> Tensor:
    for step in SAMPLERS[sampler](UNGUIDED, x, sigmas, **options):
        x = step.x
    return x


def start() -> Tensor:
    return 20 * torch.randn(64, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def measured(nums: list[int], errors: list[float]) -> float:
    return -np.polyfit(np.log(nums), np.log(errors), 1)[0]


ORDERS = {  # multistep samplers start with a first-order step, which leaves an error of h^2
    "euler": 1,
    "euler_ancestral": 1,
    "ddim": 1,
    "ddim_cfgpp": 1,
    "tcd": 1,
    "heunpp2": 1,  # its weights are not those of a quadrature
    "heun": 2,
    "restart": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2,
    "dpmpp_sde": 2,
    "dpmpp_3m_sde": 2,
    "lms": 2,
    "plms": 2,  # its weights are those of even steps, which these are not
    "ipndm": 2,
    "deis": 2,
    "unipc": 2,
    "unipc_bh2": 2,
    "dpm_fast": 3,
}
OPTIONS = {
    "lms": {"order": 2},  # of 4, the first steps' errors weigh too little to see
    "deis": {"order": 2},
    "ipndm": {"order": 2},
    "restart": {"restarts": ()},
    "tcd": {"eta": 0.0},
}


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence(sampler: str) -> None:
    """On the flow, so with eta 0."""
    options = OPTIONS.get(sampler, {"eta": 0.0} if sampler in STOCHASTIC else {})
    counts = [65, 128, 257, 512]  # two more than a multiple of 3, so that dpm_fast ends with a call to spare
    errors = []
    for num_steps in counts:
        sigmas = grid(num_steps)
        made = last(sampler, start(), sigmas, **options)
        errors.append(float((made - flow(start(), 20.0, float(sigmas[-1]))).abs().max()))
    slope = measured(counts, errors)
    assert abs(slope - ORDERS[sampler]) < 0.15, (sampler, slope, errors)


@pytest.mark.parametrize(
    ("sampler", "order", "expected"),
    [
        *[("lms", order, order) for order in (1, 2, 3, 4)],
        *[("ipndm_v", order, order) for order in (1, 2, 3, 4)],
        *[("deis", order, order) for order in (1, 2, 3)],
        *[
            (name, order, order + 1) for name in ("unipc", "unipc_bh2") for order in (1, 2, 3)
        ],  # the corrector
    ],
)
def test_order_where_the_ends_do_not_matter(sampler: str, order: int, expected: int) -> None:
    counts, errors = [32, 64, 128, 256], []
    for num_steps in counts:
        made = last(sampler, start(), graded(num_steps), order=order)
        errors.append(float((made - flow(start(), 20.0, 0.05)).abs().max()))
    slope = measured(counts, errors)
    assert abs(slope - expected) < 0.15, (sampler, slope, errors)


@pytest.mark.parametrize(("order", "tolerances"), [(2, (3, 4, 5)), (3, (5, 6, 7, 8))])
def test_adaptive_steps_keep_the_error_in_bounds(order: int, tolerances: tuple[int, ...]) -> None:
    """A tenth of the tolerance is a tenth of the error, at 10^(1/order) times the steps."""
    nums, errors = [], []
    for digits in tolerances:
        limits = {"rtol": 10.0**-digits, "atol": 10.0**-digits}
        steps = list(SAMPLERS["dpm_adaptive"](D, start()[:8], grid(2), order=order, **limits))
        nums.append(len(steps))
        errors.append(float((steps[-1].x - flow(start()[:8], 20.0, 0.05)).abs().max()))
    assert all(after < before / 5 for before, after in pairwise(errors)), errors
    assert abs(measured(nums, errors) - order) < 0.3, (nums, errors)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [*[(name, {}) for name in STOCHASTIC], ("restart", {}), ("dpm_fast", {"eta": 1.0})],
)
def test_stochastic_samplers_reproduce_the_data(sampler: str, options: dict) -> None:
    shape, num = (3, 64, 64), 2
    noise = NoiseSource(range(num), shape, dtype=torch.float64)
    num_steps = 100 if sampler.startswith(("dpm", "restart")) else 1000  # these are of second order
    sigmas = torch.cat([grid(num_steps, low=0.005), torch.zeros(1, dtype=torch.float64)])
    made = last(sampler, MU + noise() * (S**2 + 20.0**2).sqrt(), sigmas, noise=noise, **options)
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
    known = unguided(lambda x, sigma: point)
    steps = list(SAMPLERS[sampler](known, x, sigmas, noise=noise))
    assert [step.index for step in steps] == list(range(len(steps)))
    visited = sigmas[:-1].tolist()
    if sampler in OWN_STEPS:
        assert [steps[0].sigma, steps[-1].sigma] == pytest.approx([visited[0], visited[-1]], rel=1e-12)
    else:
        assert [step.sigma for step in steps] == visited
    assert torch.equal(steps[-1].denoised, point)
    torch.testing.assert_close(steps[-1].x, point, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        *[(name, {}) for name in (*STOCHASTIC, "lcm", "restart", "tcd")],
        *[(name, {"eta": 0.5}) for name in ("ddim_cfgpp", "dpm_adaptive", "dpm_fast")],
    ],
)
def test_noise_is_asked_for(sampler: str, options: dict) -> None:
    with pytest.raises(ValueError, match="NoiseSource"):
        last(sampler, torch.zeros(1, 3, 1, 1, dtype=torch.float64), grid(20), **options)
