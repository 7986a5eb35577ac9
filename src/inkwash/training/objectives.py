"""What each model minimises. B batch, C channels, H W latent or picture size, D width."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule


def diffusion_loss(
    network: Callable[..., Tensor],
    latent: Tensor,
    noise: Tensor,
    t: Tensor,
    cond: Mapping[str, Tensor],
    schedule: NoiseSchedule,
    prediction: str = "eps",
) -> Tensor:
    """Mean squared error (B,) of the network's prediction at whole timesteps t (B,) of x_t.

    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, equations 4 and 14); the target is the
    noise, v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans and Ho 2022), or x0.
    Raises ValueError for another prediction.
    """
    alpha_bar = schedule.alphas_cumprod.to(latent.device)[t].view(-1, 1, 1, 1)
    signal, spread = alpha_bar.sqrt().to(latent.dtype), (1 - alpha_bar).sqrt().to(latent.dtype)
    targets = {"eps": noise, "v": signal * noise - spread * latent, "x0": latent}
    if prediction not in targets:
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(targets)}")
    predicted = network(signal * latent + spread * noise, t, **cond)
    return (predicted.float() - targets[prediction].float()).square().mean(dim=(1, 2, 3))


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
