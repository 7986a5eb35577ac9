"""Noise schedules: what a network was trained on, and the sigmas that a sampler steps through.

Everything is float64. N training steps, n sampling steps; sigma = sqrt((1 - alpha_bar) / alpha_bar).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


def linear_betas(num: int = 1000, start: float = 0.0001, end: float = 0.02) -> Tensor:
    """betas (num,) of Ho et al. 2020, section 4."""
    return torch.linspace(start, end, num, dtype=torch.float64)


def sqrt_linear_betas(num: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """betas (num,) whose square roots are linear, with the ends of Stable Diffusion ("scaled linear")."""
    return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2


def cosine_betas(num: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """betas (num,) whose alphas_cumprod follow a squared cosine (Nichol and Dhariwal 2021, equation 17)."""
    t = torch.arange(num + 1, dtype=torch.float64) / num
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels that a network was trained on: alphas_cumprod (N,), falling, each in (0, 1)."""

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if (
            a.ndim != 1
            or a.dtype != torch.float64
            or not bool(((a > 0) & (a < 1)).all() and (a.diff() < 0).all())
        ):
            raise ValueError("alphas_cumprod must be float64 (N,), falling, and within (0, 1)")

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        return cls(torch.cumprod(1 - betas.double(), dim=0))

    @classmethod
    def log_uniform(cls, sigma_min: float, sigma_max: float, num: int = 1000) -> "NoiseSchedule":
        """Levels even in log sigma, those of EDM. Raises ValueError unless 0 < sigma_min < sigma_max."""
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} should be 0 < min < max")
        logs = torch.linspace(math.log(sigma_min), math.log(sigma_max), num, dtype=torch.float64)
        return cls(1 / (1 + (2 * logs).exp()))

    def zero_terminal_snr(self) -> "NoiseSchedule":
        """The schedule shifted and scaled so that its last level is noise alone (Lin et al. 2024, algorithm 1).

        Its alpha_bar is 4.9e-8 and not 0, as other programs have it, since sigma would not be finite.
        """
        roots = self.alphas_cumprod.sqrt()
        alphas_cumprod = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
        alphas_cumprod[-1] = 4.8973451890853435e-08
        return NoiseSchedule(alphas_cumprod)

    @property
    def sigmas(self) -> Tensor:
        """(N,), rising."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, t: Tensor) -> Tensor:
        """sigma at timesteps t in [0, N-1], log-linear between whole ones."""
        t = t.double().clamp(0, len(self.alphas_cumprod) - 1)
        low, high = t.floor().long(), t.ceil().long()
        logs = self.sigmas.log()
        return torch.lerp(logs[low], logs[high], t - low).exp()

    def t(self, sigma: Tensor) -> Tensor:
        """The timestep in [0, N-1] whose sigma this is, the inverse of `sigma`; clamped outside the schedule."""
        logs = self.sigmas.log()
        wanted = sigma.double().log().clamp(logs[0], logs[-1])
        low = (torch.searchsorted(logs, wanted, right=True) - 1).clamp(0, len(logs) - 2)
        return low + (wanted - logs[low]) / (logs[low + 1] - logs[low])


def uniform(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) at timesteps evenly spaced from the last to the first, then 0."""
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    return ending(schedule.sigma(torch.linspace(num_training - 1, 0, num_steps, dtype=torch.float64)))


def karras(num_steps: int, schedule: NoiseSchedule, rho: float = 7.0) -> Tensor:
    """sigmas (n+1,) even in sigma^(1/rho), then 0 (Karras et al. 2022, equation 5)."""
    check(num_steps, schedule)
    return ending(even_in_power(schedule.sigma_max, schedule.sigma_min, num_steps, rho))


def even_in_power(high: float, low: float, num: int, rho: float = 7.0) -> Tensor:
    """num sigmas from high to low, even in sigma^(1/rho)."""
    return torch.linspace(high ** (1 / rho), low ** (1 / rho), num, dtype=torch.float64) ** rho


def exponential(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) even in log sigma, then 0."""
    return polyexponential(num_steps, schedule)


def polyexponential(num_steps: int, schedule: NoiseSchedule, rho: float = 1.0) -> Tensor:
    """sigmas (n+1,) whose logs follow a power, then 0; rho 1 is `exponential`."""
    check(num_steps, schedule)
    high, low = math.log(schedule.sigma_max), math.log(schedule.sigma_min)
    return ending((torch.linspace(1, 0, num_steps, dtype=torch.float64) ** rho * (high - low) + low).exp())


def sgm_uniform(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) at timesteps evenly spaced from the last toward the first, which 0 takes the place of."""
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    return ending(
        schedule.sigma(torch.linspace(num_training - 1, 0, num_steps + 1, dtype=torch.float64)[:-1])
    )


def simple(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) at every (N/n)-th training step from the last, rounded down, then 0."""
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    t = num_training - 1 - (torch.arange(num_steps) * num_training / num_steps).long()
    return ending(schedule.sigmas[t])


def beta(num_steps: int, schedule: NoiseSchedule, a: float = 0.6, b: float = 0.6) -> Tensor:
    """sigmas (n+1,) at timesteps that are quantiles of the beta distribution, then 0 (Lee et al. 2024).

    So they are dense at both ends. As ComfyUI's, from 1 down to 1/n, but timesteps are not rounded, so none is
    left out; A1111 and diffusers spread sigmas, not timesteps, in this way.
    """
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    wanted = torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        over = beta_cdf(middle, a, b) > wanted
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return ending(schedule.sigma(high * (num_training - 1)))


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """The beta distribution up to x (n,): its power series (DLMF 8.17.7) below 1/2, above that of the other side."""

    def series(x: Tensor, a: float, b: float) -> Tensor:
        k = torch.arange(1, 64, dtype=torch.float64)  # each term is less than half the one before
        terms = torch.cumprod((k - b) / k * x[:, None], dim=1) / (a + k)
        whole = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
        return x**a * (1 / a + terms.sum(dim=1)) / whole

    half = x.clamp(max=0.5), (1 - x).clamp(max=0.5)
    return torch.where(x < 0.5, series(half[0], a, b), 1 - series(half[1], b, a))


def turbo(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) at the whole timesteps N, N (n-1)/n, ... less one, as distilled models are trained on; then 0."""
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    t = torch.arange(num_steps, 0, -1, dtype=torch.float64) * (num_training / num_steps) - 1
    return ending(schedule.sigmas[t.round().long()])


def lcm(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) at n of the 50 timesteps that a student of latent consistency is taught, from the last; then 0.

    Source: Luo et al. 2023, section 4.3, picked as diffusers' LCMScheduler and TCDScheduler do; above 50 steps, all n.
    """
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    num_taught = max(50, num_steps)
    taught = torch.arange(num_taught, 0, -1) * num_training // num_taught - 1
    return ending(schedule.sigmas[taught[torch.arange(num_steps) * num_taught // num_steps]])


def kl_optimal(num_steps: int, schedule: NoiseSchedule) -> Tensor:
    """sigmas (n+1,) even in arctan sigma, then 0 (Sabour et al. 2024, equation 9: optimal for Gaussian data)."""
    check(num_steps, schedule)
    high, low = math.atan(schedule.sigma_max), math.atan(schedule.sigma_min)
    return ending(torch.linspace(high, low, num_steps, dtype=torch.float64).tan())


# Sabour et al. 2024, "Align Your Steps": the optimized sigmas of ten steps
ALIGNED = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def align_your_steps(num_steps: int, schedule: NoiseSchedule, family: str = "sd1") -> Tensor:
    """sigmas (n+1,) on the curve that was optimized for a family, log-linear between its points, then 0."""
    check(num_steps, schedule)
    logs = torch.tensor(ALIGNED[family], dtype=torch.float64).log()
    at = torch.linspace(0, len(logs) - 1, num_steps, dtype=torch.float64)
    low = at.long().clamp(max=len(logs) - 2)
    return ending(torch.lerp(logs[low], logs[low + 1], at - low).exp())


def ddim(num_steps: int, schedule: NoiseSchedule, *, to_zero: bool = True) -> Tensor:
    """sigmas (n+1,) at the timesteps that LDM's DDIM takes: i * (N // n) + 1, from the last down.

    to_zero: end at 0, as samplers in sigmas do; else at the first alpha_bar, where the published DDIM and
    PLMS end (`ddim_alphas_prev` of the LDM code).
    """
    num_training = len(check(num_steps, schedule).alphas_cumprod)
    t = torch.arange(num_steps - 1, -1, -1) * (num_training // num_steps)
    offset = 1 if t[0] < num_training - 1 else 0  # with as many steps as in training there is no room for it
    sigmas = schedule.sigmas[t + offset]
    return ending(sigmas) if to_zero else torch.cat([sigmas, schedule.sigmas[:1]])


# what "automatic" is for a sampler; for those that are not named, uniform. As A1111 has it.
USUAL = {
    "ddim": "ddim",
    "ddim_cfgpp": "ddim",
    "dpm_2": "karras",
    "dpm_2_ancestral": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_2s_ancestral": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpmpp_sde": "karras",
    "plms": "ddim",
    "restart": "karras",
}
SCHEDULES: dict[str, Callable[[int, NoiseSchedule], Tensor]] = {
    "align_your_steps": align_your_steps,
    "align_your_steps_sdxl": partial(align_your_steps, family="sdxl"),
    "beta": beta,
    "ddim": ddim,
    "exponential": exponential,
    "karras": karras,
    "kl_optimal": kl_optimal,
    "lcm": lcm,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "turbo": turbo,
    "uniform": uniform,
}


def check(num_steps: int, schedule: NoiseSchedule) -> NoiseSchedule:
    num_training = len(schedule.alphas_cumprod)
    if not 1 <= num_steps <= num_training:
        raise ValueError(f"steps {num_steps} is not in 1 to {num_training}, the number of training steps")
    return schedule


def ending(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


STEP_RULES = ("a1111", "diffusers", "exact")


def tail(num_steps: int, strength: float, rule: str, sigmas: Callable[[int], Tensor]) -> Tensor:
    """The last part of a schedule, for starting from a picture instead of noise (Meng et al. 2022).

    strength in (0, 1] is the part of the noise levels that is walked; 1 is all. sigmas: the schedule of n steps.
    rule: how many steps that is. "a1111": int(strength * n) + 1; "diffusers": int(strength * n), at least 1;
    "exact": n, of a schedule of int(n / strength), which is ComfyUI's and an option of A1111's.
    Raises ValueError for other strengths and rules.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is not above 0 and at most 1")
    if rule not in STEP_RULES:
        raise ValueError(f"step rule {rule!r} is not one of {', '.join(STEP_RULES)}")
    whole = int(num_steps / strength) if rule == "exact" else num_steps
    walked = {
        "a1111": int(min(strength, 0.999) * num_steps) + 1,
        "diffusers": max(1, int(strength * num_steps)),
        "exact": num_steps,
    }[rule]
    return sigmas(whole)[-min(walked, whole) - 1 :]
