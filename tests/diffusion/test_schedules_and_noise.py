"""Laws of schedules, denoisers, guidance and noise."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.samplers.ancestral import ddim, ddpm
from inkwash.diffusion.schedules import (
    SCHEDULES,
    NoiseSchedule,
    cosine_betas,
    linear_betas,
    sqrt_linear_betas,
)
from inkwash.diffusion.schedules import ddim as ddim_sigmas

SD = NoiseSchedule.from_betas(sqrt_linear_betas())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("num_steps", [1, 2, 20, 1000])
def test_sigmas_fall_to_zero(name: str, num_steps: int) -> None:
    sigmas = SCHEDULES[name](num_steps, SD)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (num_steps + 1,)
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    loose = 6e-3 if name.startswith("align") else 1e-12  # whose published figures have three decimals
    assert sigmas[0] <= SD.sigma_max * (1 + loose) and sigmas[-2] >= SD.sigma_min * (1 - loose)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_counts_are_named(name: str, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {num_steps} is not in 1 to 1000"):
        SCHEDULES[name](num_steps, SD)


@pytest.mark.parametrize(
    ("name", "t"),
    [
        ("uniform", [999, 666, 333, 0]),
        ("sgm_uniform", [999, 749.25, 499.5, 249.75]),
        ("simple", [999, 749, 499, 249]),
        ("turbo", [999, 749, 499, 249]),
        ("lcm", [999, 759, 499, 259]),
        ("ddim", [751, 501, 251, 1]),
    ],
)
def test_timesteps_of_schedules(name: str, t: list[float]) -> None:
    torch.testing.assert_close(SD.t(SCHEDULES[name](4, SD)[:-1]), torch.tensor(t, dtype=torch.float64))


def test_kl_optimal_is_even_in_arctan() -> None:
    angles = SCHEDULES["kl_optimal"](6, SD)[:-1].atan()
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(5))


def test_t_is_the_inverse_of_sigma() -> None:
    t = torch.cat([torch.arange(1000, dtype=torch.float64), torch.rand(500, dtype=torch.float64) * 999])
    torch.testing.assert_close(SD.t(SD.sigma(t)), t, rtol=0, atol=1e-6)
    assert SD.t(SD.sigmas)[::333].tolist() == pytest.approx([0, 333, 666, 999], abs=1e-9)


@pytest.mark.parametrize("betas", [linear_betas(), sqrt_linear_betas(), cosine_betas(1000)])
def test_betas_make_a_schedule(betas: Tensor) -> None:
    schedule = NoiseSchedule.from_betas(betas)
    assert len(schedule.alphas_cumprod) == 1000 and schedule.sigma_min < 0.05 < 5 < schedule.sigma_max


def test_a_schedule_that_rises_is_refused() -> None:
    with pytest.raises(ValueError, match="falling"):
        NoiseSchedule(torch.tensor([0.5, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_published_update(eta: float) -> None:
    """Song et al. 2021, equations 12 and 16, in alphas and variance-preserving x, with the same noise."""
    sigmas = ddim_sigmas(10, SD, to_zero=False)
    alphas = 1 / (1 + sigmas**2)
    x0, start = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    draws = [randn(2, 3, 4, 4, seed=10 + i) for i in range(10)]

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return x0 + 0.1 * torch.tanh(x / (1 + sigma))

    queue = iter(draws)
    for step in ddim(D, start * sigmas[0], sigmas, noise=lambda: next(queue), eta=eta):
        ours = step.x
    x = start * sigmas[0] * alphas[0].sqrt()
    for i, noise in enumerate(draws):
        a, b = alphas[i], alphas[i + 1]
        predicted = D(x / a.sqrt(), sigmas[i])
        eps = (x - a.sqrt() * predicted) / (1 - a).sqrt()
        s = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        x = b.sqrt() * predicted + (1 - b - s**2).sqrt() * eps + s * noise
    torch.testing.assert_close(ours * alphas[-1].sqrt(), x, rtol=0, atol=1e-12)


def test_ddpm_is_the_published_posterior() -> None:
    """Ho et al. 2020, equations 6 and 7, over all training steps."""
    schedule = NoiseSchedule.from_betas(linear_betas(100, 0.001, 0.2))
    sigmas = torch.cat([schedule.sigmas.flip(0), torch.zeros(1, dtype=torch.float64)])
    x0 = randn(1, 2, 3, 3, seed=1)
    draws = [randn(1, 2, 3, 3, seed=10 + i) for i in range(100)]

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return x0 + 0.1 * torch.tanh(x / (1 + sigma))

    start = randn(1, 2, 3, 3, seed=2)
    queue = iter(draws)
    for step in ddpm(D, start * sigmas[0], sigmas, noise=lambda: next(queue)):
        ours = step.x
    alpha_bar = schedule.alphas_cumprod
    x = start * sigmas[0] * alpha_bar[-1].sqrt()
    for i, t in enumerate(range(99, -1, -1)):
        a = alpha_bar[t]
        before = alpha_bar[t - 1] if t else torch.ones((), dtype=torch.float64)
        beta = 1 - a / before
        predicted = D(x / a.sqrt(), sigmas[i])
        mean = before.sqrt() * beta / (1 - a) * predicted + (1 - beta).sqrt() * (1 - before) / (1 - a) * x
        x = mean + ((1 - before) / (1 - a) * beta).sqrt() * draws[i]
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_every_prediction_gives_the_same_denoiser(prediction: str) -> None:
    x0, noise = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    sigma = torch.tensor([0.3, 7.0], dtype=torch.float64)
    signal = (1 / (1 + sigma**2).sqrt()).view(-1, 1, 1, 1)
    spread = sigma.view(-1, 1, 1, 1) * signal
    out = {"eps": noise, "v": signal * noise - spread * x0, "x0": x0}[prediction]
    seen = {}

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        seen.update(x=x, t=t, context=context)
        return out

    denoise = precondition(network, prediction, SD)
    x = x0 + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(denoise(x, sigma, {"context": x0}), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["x"], signal * x0 + spread * noise)
    torch.testing.assert_close(seen["t"].double(), SD.t(sigma), rtol=1e-6, atol=1e-4)
    assert seen["context"] is x0


def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="'epsilon' is not one of eps, v, x0"):
        precondition(lambda *_: None, "epsilon", SD)


def test_guidance() -> None:
    calls = []

    def denoise(x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        calls.append(len(x))
        return x + cond["context"].mean(dim=(1, 2)).view(-1, 1, 1, 1)

    x, sigma = randn(2, 1, 2, 2), torch.tensor(1.0)
    cond, uncond = {"context": randn(2, 5, 3, seed=1)}, {"context": randn(2, 5, 3, seed=2)}
    difference = (cond["context"] - uncond["context"]).mean(dim=(1, 2)).view(-1, 1, 1, 1)
    wanted = denoise(x, sigma, uncond) + 7.5 * difference
    calls.clear()
    torch.testing.assert_close(cfg(denoise, cond, uncond, 7.5)(x, sigma), wanted)
    assert calls == [4]
    torch.testing.assert_close(cfg(denoise, cond, uncond, 7.5, batched=False)(x, sigma), wanted)
    assert calls == [4, 2, 2]
    longer = {"context": torch.cat([uncond["context"]] * 2, dim=1)}
    torch.testing.assert_close(cfg(denoise, cond, longer, 7.5)(x, sigma), wanted)
    assert calls[3:] == [2, 2]
    cfg(denoise, cond, uncond, 1.0)(x, sigma)
    assert calls[5:] == [2]
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"cfg_scale {scale} is not finite"):
            cfg(denoise, cond, uncond, scale)


def test_noise_of_a_picture_is_its_own() -> None:
    together = NoiseSource([3, 4, 5], (2, 3, 3))
    alone = NoiseSource([4], (2, 3, 3))
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())
    assert not torch.equal(alone(), alone())
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=str(seed)):
            NoiseSource([seed], (1,))


def way(source: NoiseSource, start: float, end: float) -> Tensor:
    """The path's own way, not over its std."""
    return source.between(start, end) * abs(end - start) ** 0.5


def test_a_brownian_path_is_one_path_however_finely_it_is_asked() -> None:
    source = NoiseSource([3, 4], (2, 8, 8), dtype=torch.float64)
    marks = [14.6, 9.0, 2.5, 0.7, 0.1, 0.03, 0.0]
    parts = sum(way(source, a, b) for a, b in pairwise(marks))
    torch.testing.assert_close(parts, way(source, marks[0], marks[-1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(way(source, 0.7, 9.0), -way(source, 9.0, 0.7), rtol=0, atol=0)
    # neither what was asked or drawn before, nor the other pictures, change it
    other = NoiseSource([4], (2, 8, 8), dtype=torch.float64)
    other()
    assert torch.equal(other.between(2.5, 0.7)[0], source.between(2.5, 0.7)[1])


def test_a_brownian_path_has_independent_normal_steps() -> None:
    source = NoiseSource(range(40), (3, 20, 20), dtype=torch.float64)
    steps = [source.between(a, b).flatten() for a, b in [(14.6, 9.0), (9.0, 2.5), (2.5, 0.7), (0.7, 0.66)]]
    bound = 5 / len(steps[0]) ** 0.5
    for i, step in enumerate(steps):
        assert abs(step.mean()) < bound and abs(step.std() - 1) < bound
        assert abs((step**4).mean() - 3) < 5 * 96**0.5 / len(step) ** 0.5
        for other in steps[:i]:
            assert abs((step * other).mean()) < bound
    drawn = source().flatten()
    assert all(abs((step * drawn).mean()) < bound for step in steps)


def test_a_brownian_path_has_bounds() -> None:
    source = NoiseSource([0], (1, 2, 2))
    for start, end in [(1.0, 1.0), (9000.0, 1.0), (1.0, -0.1), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match="are not two in"):
            source.between(start, end)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde"])
def test_more_steps_refine_the_same_picture(sampler: str) -> None:
    """The noise is of one path, so the result converges with the steps; with fresh draws it would not."""

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma**2)  # of standard normal data

    def end(num_steps: int) -> Tensor:
        source = NoiseSource([5], (2, 16, 16), dtype=torch.float64)
        sigmas = SCHEDULES["karras"](num_steps, SD)
        x = source() * sigmas[0]
        for step in SAMPLERS[sampler](D, x, sigmas, noise=source):
            x = step.x
        return x

    distances = [(end(n) - end(2 * n)).square().mean().sqrt() for n in (25, 100, 400)]
    assert distances[0] > 1.5 * distances[1] > 2.25 * distances[2]
