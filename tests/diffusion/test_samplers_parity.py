"""Samplers and schedules against k-diffusion and diffusers, on a denoiser of a Gaussian mixture in float64."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import (
    SCHEDULES,
    NoiseSchedule,
    beta,
    beta_cdf,
    cosine_betas,
    linear_betas,
    sqrt_linear_betas,
)
from inkwash.diffusion.schedules import ddim as ddim_sigmas

diffusers = pytest.importorskip("diffusers")

SD = NoiseSchedule.from_betas(sqrt_linear_betas())
CENTRES = torch.randn(5, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def D(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
    """The exact denoiser of five equally likely Gaussians of std 0.3: far from linear in x."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
    variance = 0.3**2 + sigma**2
    distance = (x - CENTRES).square().sum(dim=(2, 3, 4), keepdim=True)
    weight = torch.softmax(-distance / (2 * variance), dim=0)
    return (weight * (CENTRES + 0.3**2 / variance * (x - CENTRES))).sum(dim=0)


def draws(num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(num)]


class Queue:
    """The same draws for both, in the order in which they are asked for."""

    def __init__(self, noise: list[Tensor]):
        self.queue = iter(noise)

    def __call__(self, *between: object) -> Tensor:
        return next(self.queue)

    between = __call__


def ours(name: str, sigmas: Tensor, noise: list[Tensor], **options: object) -> Tensor:
    x = noise[0] * sigmas[0]
    for step in SAMPLERS[name](D, x, sigmas, noise=Queue(noise[1:]), **options):
        x = step.x
    return x


@pytest.fixture(scope="module")
def k_sampling() -> Iterator[ModuleType]:
    """k_diffusion/sampling.py alone: the rest of the package wants much that is not needed here."""
    package = importlib.util.find_spec("k_diffusion")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("k-diffusion is not installed")
    folder = package.submodule_search_locations[0]
    names = ("torchdiffeq", "torchsde", "scipy", "tqdm", "tqdm.auto")
    missing = [name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None]
    with pytest.MonkeyPatch.context() as patch:
        for name in missing:
            patch.setitem(sys.modules, name, MagicMock())
        parent = ModuleType("k_alone")
        parent.__path__ = [folder]
        patch.setitem(sys.modules, "k_alone", parent)
        patch.setitem(sys.modules, "k_alone.utils", MagicMock(append_dims=append_dims))
        parent.utils = sys.modules["k_alone.utils"]  # type: ignore[attr-defined]
        spec = importlib.util.spec_from_file_location("k_alone.sampling", f"{folder}/sampling.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "k_alone.sampling", module)
        spec.loader.exec_module(module)
        yield module


def append_dims(x: Tensor, num: int) -> Tensor:
    return x[(...,) + (None,) * (num - x.ndim)]


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype, in which peers then compute."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


STOCHASTIC = [name for name in SAMPLERS if name.endswith(("ancestral", "sde", "sde_heun"))]
SHARED = ("dpm_2", "dpmpp_2m", "euler", "heun", "lms", *STOCHASTIC)
THEIR_NAMES = {"dpmpp_2m_sde_heun": "dpmpp_2m_sde"}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("schedule", ["karras", "uniform"])
def test_k_diffusion_walks_the_same_way(k_sampling: ModuleType, name: str, schedule: str) -> None:
    sigmas, noise = SCHEDULES[schedule](15, SD), draws(40)
    options: dict = {"noise_sampler": Queue(noise[1:])} if name in STOCHASTIC else {}
    if name == "dpmpp_2m_sde_heun":
        options["solver_type"] = "heun"
    sample = getattr(k_sampling, f"sample_{THEIR_NAMES.get(name, name)}")
    wanted = sample(D, noise[0] * sigmas[0], sigmas, disable=True, **options)
    torch.testing.assert_close(ours(name, sigmas, noise), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_k_diffusion_has_the_same_eta(k_sampling: ModuleType, name: str, eta: float) -> None:
    sigmas, noise = SCHEDULES["karras"](10, SD), draws(40)
    options: dict = {"solver_type": "heun"} if name == "dpmpp_2m_sde_heun" else {}
    sample = getattr(k_sampling, f"sample_{THEIR_NAMES.get(name, name)}")
    options |= {"noise_sampler": Queue(noise[1:]), "eta": eta, "disable": True}
    wanted = sample(D, noise[0] * sigmas[0], sigmas, **options)
    torch.testing.assert_close(ours(name, sigmas, noise, eta=eta), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 12, 13, 14])
def test_dpm_fast_is_that_of_k_diffusion(
    k_sampling: ModuleType, float64: None, num_steps: int, eta: float
) -> None:
    """Theirs ends at the last positive sigma, and so does ours where sigmas do."""
    sigmas, noise = SCHEDULES["karras"](num_steps + 1, SD)[:-1], draws(40)
    sample, ends = k_sampling.sample_dpm_fast, (float(sigmas[-1]), float(sigmas[0]))
    options = {"eta": eta, "noise_sampler": Queue(noise[1:]), "disable": True}
    wanted = sample(D, noise[0] * sigmas[0], *ends, num_steps, **options)
    torch.testing.assert_close(ours("dpm_fast", sigmas, noise, eta=eta), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("pid", [(0.0, 1.0, 0.0), (0.1, 0.8, 0.05)])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_is_that_of_k_diffusion(
    k_sampling: ModuleType, float64: None, order: int, pid: tuple[float, float, float], eta: float
) -> None:
    """Theirs has one width for the batch, ours one for each picture; so theirs draws them one by one.

    They draw noise for a step that is accepted, we for each one: the source counts the calls of their callback.
    """
    sigmas, noise = SCHEDULES["karras"](8, SD)[:-1], draws(300)
    got = ours("dpm_adaptive", sigmas, noise, order=order, pid=pid, eta=eta)
    rejected = 0
    for k in range(len(got)):
        tried: list[dict] = []
        wanted = k_sampling.sample_dpm_adaptive(
            D,
            noise[0][k : k + 1] * sigmas[0],
            float(sigmas[-1]),
            float(sigmas[0]),
            order=order,
            eta=eta,
            noise_sampler=lambda *_, k=k, tried=tried: noise[1 + len(tried)][k : k + 1],
            callback=tried.append,
            disable=True,
            **dict(zip(("pcoeff", "icoeff", "dcoeff"), pid, strict=True)),
        )
        rejected += tried[-1]["n_reject"]
        torch.testing.assert_close(got[k : k + 1], wanted, rtol=0, atol=1e-9)
    assert rejected  # or that part would not have been seen


@pytest.mark.parametrize("num_steps", [12, 20, 41])
@pytest.mark.parametrize("to_zero", [True, False])
def test_restart_is_heun_of_k_diffusion_with_noise_between(
    k_sampling: ModuleType, float64: None, num_steps: int, to_zero: bool
) -> None:
    """A1111's plan, put together from k-diffusion's sigmas and steps."""
    sigmas, noise = SCHEDULES["uniform"](num_steps + (not to_zero), SD), draws(4)
    sigmas = sigmas if to_zero else sigmas[:-1]
    low, high = float(sigmas[sigmas > 0][-1]), float(sigmas[0])
    ways = [sigmas]
    if num_steps >= 20:
        spent, times = (num_steps // 4, 2) if num_steps >= 36 else (9, 1)
        walked = num_steps - spent * times + (not to_zero)
        whole = k_sampling.get_sigmas_karras(walked, low, high)
        whole = whole if to_zero else whole[:-1]
        bottom, top = ((whole - level).abs().argmin() for level in (0.1, 2.0))
        again = k_sampling.get_sigmas_karras(spent + 1, float(whole[bottom]), float(whole[top]))[:-1]
        ways = [whole[: bottom + 1], *[again] * times, whole[bottom:]]
        if to_zero:
            assert sum(len(way) - 1 for way in ways) == num_steps
    x, queue = noise[0] * sigmas[0], iter(noise[1:])
    for before, way in zip([ways[0][:1], *ways], ways, strict=False):
        if way[0] > before[-1] + 1e-12:
            x = x + next(queue) * (way[0] ** 2 - before[-1] ** 2).sqrt()
        if to_zero or len(way) > 1:
            x = k_sampling.sample_heun(D, x, way, disable=True)
    torch.testing.assert_close(ours("restart", sigmas, noise), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential"])
def test_k_diffusion_has_the_same_sigmas(k_sampling: ModuleType, name: str) -> None:
    wanted = getattr(k_sampling, f"get_sigmas_{name}")(12, SD.sigma_min, SD.sigma_max)
    torch.testing.assert_close(SCHEDULES[name](12, SD).float(), wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("betas", "name"),
    [
        (linear_betas(1000, 0.0001, 0.02), "linear"),
        (sqrt_linear_betas(1000, 0.0001, 0.02), "scaled_linear"),
        (cosine_betas(1000), "squaredcos_cap_v2"),
    ],
)
def test_diffusers_has_the_same_betas(betas: Tensor, name: str) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=name)
    torch.testing.assert_close(betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    alphas = NoiseSchedule.from_betas(betas).alphas_cumprod.float()
    torch.testing.assert_close(alphas, theirs.alphas_cumprod, rtol=2e-4, atol=1e-8)


def sd_scheduler(kind: str, **options: object):
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **options}
    scheduler = getattr(diffusers, kind)(**options)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = SD.alphas_cumprod  # float64, so that only the method is compared
    return scheduler


def test_uniform_sigmas_are_diffusers_linspace() -> None:
    """Up to the interpolation between training steps: theirs is linear, ours log-linear as k-diffusion's."""
    theirs = sd_scheduler("EulerDiscreteScheduler", timestep_spacing="linspace")
    theirs.set_timesteps(20)
    torch.testing.assert_close(SCHEDULES["uniform"](20, SD).float(), theirs.sigmas, rtol=2e-3, atol=1e-6)


def test_trailing_sigmas_are_those_of_diffusers() -> None:
    theirs = sd_scheduler("EulerDiscreteScheduler", timestep_spacing="trailing")
    for num_steps in (1, 4, 8):
        theirs.set_timesteps(num_steps)
        torch.testing.assert_close(
            SCHEDULES["turbo"](num_steps, SD).float(), theirs.sigmas, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "known"),
    [("align_your_steps", "StableDiffusion"), ("align_your_steps_sdxl", "StableDiffusionXL")],
)
def test_aligned_sigmas_are_those_of_diffusers(name: str, known: str) -> None:
    from diffusers.schedulers import AysSchedules

    published = AysSchedules[f"{known}Sigmas"]  # which end in a 0 of their own
    torch.testing.assert_close(SCHEDULES[name](11, SD)[:-1].tolist()[:10], published[:10], rtol=1e-9, atol=0)
    finer = SCHEDULES[name](21, SD)
    torch.testing.assert_close(finer[:-1:2], SCHEDULES[name](11, SD)[:-1])
    torch.testing.assert_close(finer[1], (finer[0] * finer[2]).sqrt())


def walk(scheduler, num_steps: int, start: Tensor, **options: object) -> Tensor:
    """A whole trajectory of a variance-preserving scheduler of theirs, from variance-preserving x."""
    scheduler.set_timesteps(num_steps)
    x = start
    for t in scheduler.timesteps:
        a = SD.alphas_cumprod[int(t)]
        sigma = ((1 - a) / a).sqrt()
        eps = (x / a.sqrt() - D(x / a.sqrt(), sigma)) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("num_steps", [2, 3, 10, 20])
@pytest.mark.parametrize(
    ("name", "scheduler", "own"),
    [("ddim", "DDIMScheduler", {"clip_sample": False}), ("plms", "PNDMScheduler", {"skip_prk_steps": True})],
)
def test_published_ends_are_those_of_diffusers(
    name: str, scheduler: str, own: dict, num_steps: int, to_zero: bool
) -> None:
    theirs = sd_scheduler(
        scheduler, set_alpha_to_one=to_zero, steps_offset=1, timestep_spacing="leading", **own
    )
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64) if to_zero else SD.alphas_cumprod[0]
    sigmas = ddim_sigmas(num_steps, SD, to_zero=to_zero)
    noise = draws(1)
    wanted = walk(theirs, num_steps, noise[0] * sigmas[0] / (1 + sigmas[0] ** 2).sqrt())
    got = ours(name, sigmas, noise) / (1 + sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


def through(theirs, sigmas: Tensor, start: Tensor) -> Tensor:
    """A whole trajectory of a scheduler of theirs with our sigmas in its tables, to variance-exploding x."""
    num_steps = len(sigmas) - 1
    theirs.set_timesteps(num_steps)
    theirs.timesteps, theirs.sigmas = torch.arange(num_steps, 0, -1), sigmas
    theirs.betas, theirs.alphas = sigmas / (1 + sigmas**2).sqrt(), 1 / (1 + sigmas**2).sqrt()  # of IPNDM
    x = start / (1 + sigmas[0] ** 2).sqrt()
    for sigma, t in zip(sigmas, theirs.timesteps, strict=False):
        scale = (1 + sigma**2).sqrt()
        eps = (x * scale - D(x * scale, sigma)) / sigma
        if isinstance(theirs, diffusers.IPNDMScheduler):
            eps = (eps - x * sigma / scale) * scale  # from which it makes eps again
        x = theirs.step(eps, t, x).prev_sample
    return x * (1 + sigmas[-1] ** 2).sqrt()


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_that_of_diffusers(variant: str, order: int, num_steps: int, to_zero: bool) -> None:
    theirs = sd_scheduler("UniPCMultistepScheduler", solver_type=variant, solver_order=order)
    sigmas, noise = SCHEDULES["karras"](num_steps + (not to_zero), SD), draws(1)
    sigmas = sigmas if to_zero else sigmas[:-1]
    end = 1e-13 if variant == "bh1" else 0.0  # at 0 their bh1 is infinity times 0
    wanted = through(theirs, sigmas.clamp(min=end), noise[0] * sigmas[0])
    got = ours("unipc", sigmas, noise, order=order, variant=variant)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_that_of_diffusers(order: int, num_steps: int) -> None:
    """Theirs ends above 0. Below 15 steps it lowers the order at the end, which is an option."""
    theirs = sd_scheduler("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    sigmas, noise = SCHEDULES["karras"](num_steps + 1, SD)[:-1], draws(1)
    wanted = through(theirs, sigmas, noise[0] * sigmas[0])
    torch.testing.assert_close(ours("deis", sigmas, noise, order=order), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_ipndm_is_that_of_diffusers(num_steps: int) -> None:
    """Above 0, since theirs extrapolates in the step to 0 as well; ours, as ComfyUI's, ends with Euler's."""
    sigmas, noise = SCHEDULES["karras"](num_steps + 1, SD)[:-1], draws(1)
    wanted = through(diffusers.IPNDMScheduler(), sigmas, noise[0] * sigmas[0])
    torch.testing.assert_close(ours("ipndm", sigmas, noise), wanted, rtol=0, atol=1e-9)


TIMESTEPS = [999, 800, 500, 200]


def distilled(
    theirs, draws_of: str, noise: list[Tensor], patch: pytest.MonkeyPatch, **options: object
) -> Tensor:
    queue = iter(noise[1:])
    patch.setattr(f"diffusers.schedulers.{draws_of}.randn_tensor", lambda *_, **__: next(queue))
    set_timesteps = theirs.set_timesteps
    patch.setattr(theirs, "set_timesteps", lambda _: set_timesteps(timesteps=TIMESTEPS))
    a = SD.alphas_cumprod[TIMESTEPS[0]]
    return walk(theirs, len(TIMESTEPS), noise[0] * (1 - a).sqrt(), **options)


def test_lcm_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their boundary condition, which changes x0 by up to 1e-4 at the last timesteps, is scaled away."""
    theirs, noise = sd_scheduler("LCMScheduler", timestep_scaling=1e12), draws(10)
    wanted = distilled(theirs, "scheduling_lcm", noise, monkeypatch)
    sigmas = torch.cat([SD.sigmas[TIMESTEPS], torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(ours("lcm", sigmas, noise), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.3, 1.0])
def test_tcd_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch, eta: float) -> None:
    """At timesteps and an eta whose products are whole, since theirs rounds them down. It ends at timestep 0."""
    theirs, noise = sd_scheduler("TCDScheduler"), draws(10)
    wanted = distilled(theirs, "scheduling_tcd", noise, monkeypatch, eta=eta)
    sigmas = SD.sigmas[[*TIMESTEPS, 0]]
    got = ours("tcd", sigmas, noise, eta=eta, schedule=SD) * SD.alphas_cumprod[0].sqrt()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.3, 2.0), (3.0, 1.5), (1.0, 1.0)])
def test_beta_distribution_is_that_of_scipy(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(beta_cdf(x, a, b).numpy(), stats.beta.cdf(x.numpy(), a, b), rtol=0, atol=1e-13)
    t = stats.beta.ppf(1 - torch.arange(50, dtype=torch.float64).numpy() / 50, a, b) * 999
    wanted = SD.sigma(torch.from_numpy(t))
    torch.testing.assert_close(beta(50, SD, a, b)[:-1], wanted, rtol=0, atol=1e-9)


def test_dpmpp_2m_is_that_of_diffusers() -> None:
    theirs = sd_scheduler(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(20)
    sigmas = theirs.sigmas.double()
    noise = draws(1)
    x = noise[0] * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    for i, t in enumerate(theirs.timesteps):
        sigma = sigmas[i]
        scale = (1 + sigma**2).sqrt()
        eps = (x * scale - D(x * scale, sigma)) / sigma
        x = theirs.step(eps, t, x).prev_sample
    # their sigmas are float32, and they extrapolate in the step to 0 as well, where the ratio h/0 vanishes
    torch.testing.assert_close(ours("dpmpp_2m", sigmas, noise), x.double(), rtol=0, atol=1e-3)
