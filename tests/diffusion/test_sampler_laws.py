"""Identities between samplers, in float64; most of these have no peer that is installed."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from inkwash.diffusion.guidance import Guided, cfg, keep_known
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.samplers.restart import Restart
from inkwash.diffusion.schedules import NoiseSchedule, beta, beta_cdf, karras, sqrt_linear_betas

SD = NoiseSchedule.from_betas(sqrt_linear_betas())


def randn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (2, 3, 4, 4), dtype=torch.float64, generator=generator)


START = 14 * randn(0)


def denoise(x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Not linear in x, and different for each condition."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(x / (1 + sigma) + cond["context"].reshape(-1, 1, 1, 1) / (1 + sigma))


def cond(value: float) -> dict[str, Tensor]:
    return {"context": torch.full((2, 1), value, dtype=torch.float64)}


def guided(scale: float, other: float = -0.5) -> Guided:
    return cfg(denoise, cond(1.0), cond(other), scale)


def end(sampler: str, sigmas: Tensor, D=None, **options: object) -> Tensor:
    x = START
    for step in SAMPLERS[sampler](D or guided(1.0), x, sigmas, **options):
        x = step.x
    return x


def noises() -> Iterator[Tensor]:
    yield from (randn(seed) for seed in range(100, 200))


def same(one: Tensor, other: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


SIGMAS = karras(8, SD)


# ---------------------------------------------------------------- one sampler is another


@pytest.mark.parametrize(
    ("sampler", "options", "other", "its"),
    [
        ("restart", {"restarts": ()}, "heun", {}),
        ("restart", {}, "heun", {}),  # of 8 steps A1111 spends none on it
        ("tcd", {"eta": 0.0}, "ddim", {}),
        ("ipndm", {"order": 1}, "euler", {}),
        ("ipndm_v", {"order": 1}, "euler", {}),
        ("deis", {"order": 1}, "euler", {}),
    ],
)
def test_samplers_that_are_another(sampler: str, options: dict, other: str, its: dict) -> None:
    same(end(sampler, SIGMAS, **options), end(other, SIGMAS, **its))


def test_a_predictor_of_bh2_without_its_corrector_is_dpmpp_2m() -> None:
    """Two steps have no corrected x but the first, which is then the start."""
    sigmas = SIGMAS[:3]
    steps = list(SAMPLERS["unipc_bh2"](guided(1.0), START, sigmas, order=2))
    assert torch.equal(steps[0].x, next(SAMPLERS["dpmpp_2m"](guided(1.0), START, sigmas)).x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_v_is_ipndm_where_steps_are_even(order: int) -> None:
    even = torch.linspace(14, 0, 15, dtype=torch.float64)
    same(end("ipndm_v", even, order=order), end("ipndm", even, order=order))
    assert (end("ipndm_v", SIGMAS, order=2) - end("ipndm", SIGMAS, order=2)).abs().max() > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_v_is_lms_but_for_the_step_to_zero(order: int) -> None:
    same(end("ipndm_v", SIGMAS[:-1], order=order), end("lms", SIGMAS[:-1], order=order))


def test_ipndm_v_has_the_published_weights_of_two_slopes() -> None:
    """As ComfyUI writes them. Those that it has for three misplace a bracket, so ours differ by a third difference."""
    steps = list(SAMPLERS["ipndm_v"](guided(1.0), START, SIGMAS, order=2))
    xs = [START, *[step.x for step in steps]]
    slopes = [(x - step.denoised) / step.sigma for x, step in zip(xs, steps, strict=False)]
    for i in range(1, 7):
        h, before = (float(SIGMAS[k + 1] - SIGMAS[k]) for k in (i, i - 1))
        weights = (2 + h / before) / 2, -(h / before) / 2
        same(xs[i + 1], xs[i] + h * (weights[0] * slopes[i] + weights[1] * slopes[i - 1]))


def test_heunpp2_has_three_slopes_then_two_then_one() -> None:
    D, s = guided(1.0), SIGMAS[-4:]
    slope = lambda x, k: (x - D(x, s[k])) / s[k]  # noqa: E731
    x = START
    a = slope(x, 0)
    b = slope(x + (s[1] - s[0]) * a, 1)
    c = slope(x + (s[1] - s[0]) * a + (s[2] - s[1]) * b, 2)
    w = torch.stack([s[1], s[2]]) / (3 * s[0])
    x = x + (s[1] - s[0]) * ((1 - w[0] - w[1]) * a + w[0] * b + w[1] * c)
    a = slope(x, 1)
    b = slope(x + (s[2] - s[1]) * a, 2)
    w = s[2] / (2 * s[0])
    x = x + (s[2] - s[1]) * ((1 - w) * a + w * b)
    same(end("heunpp2", s), D(x, s[2]))


def test_unknown_options_are_refused() -> None:
    for sampler, options, message in [
        ("unipc", {"order": 4}, "order 4 is not in 1 to 3"),
        ("unipc", {"variant": "bh3"}, "'bh3' is not bh1 or bh2"),
        ("deis", {"order": 5}, "order 5 is not in 1 to 4"),
        ("dpm_adaptive", {"order": 1}, "order 1 is not 2 or 3"),
        ("tcd", {"eta": 1.5}, "eta 1.5 is not in 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            end(sampler, SIGMAS, **options)


# ---------------------------------------------------------------- steps of their own


def test_restart_goes_back_up_as_often_as_it_is_told() -> None:
    plan = [Restart(0.3, 5.0, 4, 3)]
    queue = noises()
    steps = list(SAMPLERS["restart"](guided(1.0), START, SIGMAS, noise=lambda: next(queue), restarts=plan))
    sigmas = [step.sigma for step in steps]
    assert len(steps) == 8 + 3 * 4 and [step.index for step in steps] == list(range(20))
    rises = [k for k in range(19) if sigmas[k + 1] > sigmas[k]]
    assert len(rises) == 3
    top = float(SIGMAS[(SIGMAS - 5.0).abs().argmin()])
    assert [sigmas[k + 1] for k in rises] == pytest.approx([top] * 3)
    assert len(list(noises())) - len(list(queue)) == 3


def test_adaptive_steps_of_a_picture_do_not_depend_on_the_batch() -> None:
    D = lambda x, sigma: denoise(x, sigma, {"context": torch.ones(1, dtype=torch.float64)})  # noqa: E731
    both = torch.stack([START[0], 0.05 * START[1]])  # pictures of different difficulty
    queue = noises()
    steps = list(SAMPLERS["dpm_adaptive"](D, both, SIGMAS, eta=0.5, noise=lambda: next(queue)))
    for k in (0, 1):
        queue = (noise[k : k + 1] for noise in noises())
        alone = list(SAMPLERS["dpm_adaptive"](D, both[k : k + 1], SIGMAS, eta=0.5, noise=lambda: next(queue)))  # noqa: B023
        same(steps[-1].x[k : k + 1], alone[-1].x)


def test_adaptive_steps_stop_at_what_is_not_finite() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        end("dpm_adaptive", SIGMAS, lambda x, sigma: x * math.nan)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 20])
def test_dpm_fast_calls_the_denoiser_once_for_each_step(num_steps: int) -> None:
    calls = []

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return x / (1 + sigma)

    end("dpm_fast", karras(num_steps, SD), D)
    assert len(calls) == num_steps and calls == sorted(calls, reverse=True)


# ---------------------------------------------------------------- consistency


@pytest.mark.parametrize("num_steps", [1, 4])
def test_lcm_of_a_consistency_function_reproduces_the_data(num_steps: int) -> None:
    """For data N(0, 0.5^2) the flow ends at 0.5 x / sqrt(0.25 + sigma^2), in any number of steps."""
    x = randn(1, 1, 1, 300, 300) * (0.25 + SIGMAS[0] ** 2).sqrt()
    sigmas, seeds = karras(num_steps, SD), iter(range(10, 50))
    f = lambda x, sigma: x * 0.5 / (0.25 + sigma**2).sqrt()  # noqa: E731
    for step in SAMPLERS["lcm"](f, x, sigmas, noise=lambda: randn(next(seeds), 1, 1, 300, 300)):
        x = step.x
    assert abs(float(x.mean())) < 0.01 and float(x.std()) == pytest.approx(0.5, rel=0.01)


# ---------------------------------------------------------------- CFG++


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_cfgpp_is_ddim_whose_scale_rises_to_the_end(share: float) -> None:
    """x0 is guided by lambda, the noise is not: ddim with a scale of lambda sigma / (sigma - sigma_next)."""
    x = START
    for i in range(8):
        scale = 3.0 * share * float(SIGMAS[i] / (SIGMAS[i] - SIGMAS[i + 1]))
        x = next(SAMPLERS["ddim"](guided(scale), x, SIGMAS[i : i + 2])).x
    same(end("ddim_cfgpp", SIGMAS, guided(3.0), share=share), x)


def test_cfgpp_is_ddim_where_guidance_changes_nothing() -> None:
    same(end("ddim_cfgpp", SIGMAS, guided(5.0, other=1.0)), end("ddim", SIGMAS, guided(5.0, other=1.0)))
    same(end("ddim_cfgpp", SIGMAS, guided(0.0)), end("ddim", SIGMAS, guided(0.0)))


def test_cfgpp_needs_both_predictions() -> None:
    with pytest.raises(ValueError, match="without guidance"):
        end("ddim_cfgpp", SIGMAS, lambda x, sigma: x)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("batched", [True, False])
def test_a_guided_denoiser_has_its_parts(scale: float, batched: bool) -> None:
    D = cfg(denoise, cond(1.0), cond(-0.5), scale, batched)
    predicted, conditional, unguided, _ = D.predict(START, SIGMAS[2], "all")
    same(predicted, D(START, SIGMAS[2]))
    same(conditional, denoise(START, SIGMAS[2], cond(1.0)))
    same(unguided, denoise(START, SIGMAS[2], cond(-0.5)))
    same(D.predict(START, SIGMAS[2], "cond").cond, conditional)
    same(D.predict(START, SIGMAS[2], "uncond").uncond, unguided)


def test_a_kept_part_is_kept_in_both_predictions() -> None:
    latent, noise, mask = randn(3), randn(4), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    D = keep_known(guided(4.0), latent, mask, noise)
    assert isinstance(D, Guided)
    predicted, _, unguided, _ = D.predict(START, SIGMAS[2], "all")
    same(predicted, D(START, SIGMAS[2]))
    for part in (predicted, unguided, end("ddim_cfgpp", SIGMAS, D)):
        assert torch.equal(part[..., 2:], latent[..., 2:])
    assert not torch.allclose(predicted[..., :2], unguided[..., :2])
    assert not isinstance(keep_known(D.__call__, latent, mask, noise), Guided)


# ---------------------------------------------------------------- the beta schedule


def test_beta_distribution_has_its_closed_forms() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    same(beta_cdf(x, 1.0, 1.0), x, 1e-14)
    same(beta_cdf(x, 2.0, 3.0), x**2 * (6 - 8 * x + 3 * x**2), 1e-14)
    same(beta_cdf(x, 0.5, 0.5), 2 / math.pi * torch.asin(x.sqrt()), 1e-14)
    same(beta_cdf(x, 0.6, 0.6) + beta_cdf(1 - x, 0.6, 0.6), torch.ones_like(x), 1e-14)


def test_beta_sigmas_are_at_quantiles() -> None:
    t = SD.t(beta(20, SD)[:-1])
    wanted = torch.arange(20, 0, -1, dtype=torch.float64) / 20
    same(beta_cdf(t / 999, 0.6, 0.6), wanted, 1e-9)
    gaps = -t.diff()
    assert gaps[0] < gaps[9] / 2 and gaps[-1] < gaps[9]  # dense at both ends
