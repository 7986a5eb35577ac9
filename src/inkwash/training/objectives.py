"""The training objectives of models. B batch, C channels, H W latent or picture size, D width."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.diffusion.denoiser import EDM, precondition
from inkwash.diffusion.schedules import NoiseSchedule


@dataclass(frozen=True)
class Objective:
    """The training objective of a diffusion network; `training/config.py` describes the fields of the same names."""

    prediction: str = "eps"
    loss: str = "l2"
    huber_delta: float = 0.1
    weighting: str = "none"
    snr_gamma: float = 5.0
    timesteps: str = "stratified"
    min_timestep: int = 0
    max_timestep: int = 999
    noise_offset: float = 0.0
    pyramid_noise: float = 0.0
    input_perturbation: float = 0.0
    timestep_power: float = 0.45  # of the law noisy: 1 is uniform, less draws more of the high ones

    def draw_timesteps(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw integer timesteps (num,)."""
        u = torch.rand(num, generator=rng)
        if self.timesteps in ("stratified", "noisy"):  # the same law, less variance of the gradient
            u = (torch.arange(num) + u) / num
        if self.timesteps == "noisy":
            u = u**self.timestep_power
        if self.timesteps == "logit-normal":  # Esser et al. 2024, section 3.1
            u = torch.randn(num, generator=rng).sigmoid()
        span = self.max_timestep + 1 - self.min_timestep
        return (self.min_timestep + u * span).long().clamp(max=self.max_timestep)

    def draw_noise(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Noise (B, C, H, W), correlated over each channel where the objective says so."""
        noise = torch.randn(shape, generator=rng)
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn(*shape[:2], 1, 1, generator=rng)
        if self.pyramid_noise:
            noise = pyramid(noise, self.pyramid_noise, rng)
        return noise

    def losses(
        self,
        network: Callable[..., Tensor],
        latent: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        schedule: NoiseSchedule,
        mask: Tensor | None = None,
        perturbation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighed losses (B,), and the plain ones. mask (B, 1, H, W): where errors count. perturbation: noise of the
        input alone, which `input_perturbation` scales."""
        if self.prediction in EDM:
            error, level = edm_error(network, latent, noise, t, cond, schedule, self.prediction)
            return (plain := self.mean(error, mask)) * level, plain
        added = noise if perturbation is None else noise + self.input_perturbation * perturbation
        error = prediction_error(network, latent, noise, t, cond, schedule, self.prediction, added)
        plain = self.mean(error, mask)
        return plain * self.weights(schedule, t), plain

    def mean(self, error: Tensor, mask: Tensor | None) -> Tensor:
        """The mean loss of each picture (B,)."""
        if self.loss == "l2":
            values = error.square()
        elif self.loss == "l1":
            values = error.abs()
        else:  # pseudo-Huber, scaled so that small errors count as in l2
            delta = self.huber_delta
            values = 2 * delta * ((error.square() + delta**2).sqrt() - delta)
        return (values if mask is None else values * mask).mean(dim=(1, 2, 3))

    def weights(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The loss weights (B,) of timesteps t (B,)."""
        if self.weighting in ("min-snr", "snr+1"):
            plus = 1.0 if self.weighting == "snr+1" else 0.0
            return min_snr_weight(schedule, t, self.snr_gamma, plus, self.prediction)
        alpha_bar = schedule.alphas_cumprod.to(t.device)[t].float()
        snr = alpha_bar / (1 - alpha_bar)
        if self.weighting == "p2":  # Choi et al. 2022, equation 8, with k = 1
            return (1 + snr) ** -self.snr_gamma
        if self.weighting == "debiased":  # Yu et al. 2024, equation 13
            return snr.clamp(1e-6, 1e3).rsqrt()
        return torch.ones_like(snr)


def pyramid(noise: Tensor, discount: float, rng: torch.Generator) -> Tensor:
    """The noise with that of coarser and coarser grids, each level times `discount` once more, at its variance."""
    *rows, height, width = noise.shape
    total, scale = noise, 1.0
    while min(height, width) > 1:
        height, width, scale = max(1, height // 2), max(1, width // 2), scale * discount
        coarse = torch.randn(*rows, height, width, generator=rng)
        total = total + scale * F.interpolate(coarse, noise.shape[2:], mode="bilinear", align_corners=False)
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def edm_error(
    network: Callable[..., Tensor],
    latent: Tensor,
    noise: Tensor,
    t: Tensor,
    cond: Mapping[str, Tensor],
    schedule: NoiseSchedule,
    prediction: str,
) -> tuple[Tensor, Tensor]:
    """The denoised latent's error and the weight (B,) of its level (Karras et al. 2022, section 5 and table 1).

    Levels are log-normal, ln sigma ~ N(-1.2, 1.2); timesteps t stand for quantiles of that.
    """
    std = EDM[prediction][0]
    quantiles = ((t.double() + 0.5) / 1000).clamp(1e-4, 1 - 1e-4)
    sigma = (-1.2 + 1.2 * math.sqrt(2) * torch.erfinv(2 * quantiles - 1)).exp()
    x = latent + sigma.to(latent).view(-1, 1, 1, 1) * noise
    denoised = precondition(network, prediction, schedule)(x, sigma, cond)
    weight = (sigma.square() + std**2) / (sigma * std).square()
    return denoised.float() - latent.float(), weight.to(latent.device, torch.float32)


def prediction_error(
    network: Callable[..., Tensor],
    latent: Tensor,
    noise: Tensor,
    t: Tensor,
    cond: Mapping[str, Tensor],
    schedule: NoiseSchedule,
    prediction: str = "eps",
    added: Tensor | None = None,
) -> Tensor:
    """The error (B, C, H, W) of the network's prediction at whole timesteps t (B,) of x_t.

    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, equations 4 and 14); the target is the
    noise, v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans and Ho 2022), or x0.
    added: in x_t in the noise's place. Raises ValueError for another prediction.
    """
    alpha_bar = schedule.alphas_cumprod.to(latent.device)[t].view(-1, *[1] * (latent.ndim - 1))
    signal, spread = alpha_bar.sqrt().to(latent.dtype), (1 - alpha_bar).sqrt().to(latent.dtype)
    targets = {"eps": noise, "v": signal * noise - spread * latent, "x0": latent}
    if prediction not in targets:
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(targets)}")
    predicted = network(signal * latent + spread * (noise if added is None else added), t, **cond)
    return predicted.float() - targets[prediction].float()


def min_snr_weight(
    schedule: NoiseSchedule, t: Tensor, gamma: float = 5.0, plus: float = 0.0, prediction: str = "eps"
) -> Tensor:
    """Weight (B,) of a prediction's losses at whole timesteps t by which errors of x0 count min(SNR + plus, gamma).

    plus 0: Hang et al. 2023, section 3.4. plus 1: as the v objective weighs them (Salimans and Ho 2022, section 4),
    so that what is decided at high noise counts.
    """
    alpha_bar = schedule.alphas_cumprod.to(t.device)[t]
    snr = alpha_bar / (1 - alpha_bar)
    # what the prediction's own loss weighs x0 by
    own = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[prediction]
    return ((snr + plus).clamp(max=gamma) / own).float()


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, positive: Tensor) -> Tensor:
    """Symmetric cross-entropy of cosine similarities (Radford et al. 2021, figure 3).

    images, texts: (B, D), of any length. positive: (B, B) bool, which pairs belong together; captions that
    several pictures of the batch share are no false negatives then.
    """
    logits = logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    target = positive.float() / positive.sum(dim=1, keepdim=True)
    return (
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    ) / 2


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence (B,) of a diagonal Gaussian from the standard one, summed over all dimensions."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=(1, 2, 3))


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The weight that gives both losses gradients of one size at the last layer (Esser et al. 2021, equation 7)."""
    (a,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(0.0, 1e4).detach()
