"""Limits that keep strong guidance in bounds. B batch, C channels, H W latent size."""

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import shaped
from inkwash.diffusion.guidance.compose import Guided, Need, Prediction, changed


def interval(D: Guided, low: float, high: float) -> Guided:
    """Guidance for sigmas above `low` up to `high` alone; elsewhere the condition, in one call.

    Source: Kynkäänniemi et al. 2024, equation 5. Raises ValueError where low is not less than high.
    """
    if not low < high:
        raise ValueError(f"sigma {low} is not less than {high}")

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        sigma = sigma.expand(len(x))
        inside = (sigma > low) & (sigma <= high)
        if need in ("cond", "uncond") or inside.all():
            return D.predict(x, sigma, need)
        off = D.predict(x, sigma, "cond")
        if not inside.any():
            return off
        mask = shaped(inside, x).bool()  # pictures at levels of their own
        on = D.predict(x, sigma, need)
        return Prediction(*(torch.where(mask, *pair) for pair in zip(on, off, strict=True)))

    return Guided(predict)


def rescale(D: Guided, phi: float) -> Guided:
    """Guidance that keeps the spread of v as the condition predicts it, to a part phi in [0, 1]; 0 is off.

    Strong guidance widens it, which burns colours. Source: Lin et al. 2024, equations 15 and 16. Spreads are those of
    v = (x / sqrt(1 + sigma^2) - x0 * sqrt(1 + sigma^2)) / sigma, whatever the network predicts. Raises ValueError for
    another phi.
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"cfg_rescale {phi} is not in 0 to 1")

    def change(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        # v is this times a positive number of each picture, which cancels
        sigma = sigma.expand(len(x)).double()
        origin = x * shaped(1 / (sigma.square() + 1), x)
        wanted, got = ((x0 - origin).std(dim=(1, 2, 3), keepdim=True) for x0 in (made.cond, made.guided))
        factor = phi * (wanted / got) + (1 - phi)
        return origin + factor * (made.guided - origin)

    return changed(D, change) if phi else D


def threshold_pixels(D: Guided, quantile: float, most: float) -> Guided:
    """Guidance of pixels, clamped to the quantile of their distances from 0 and scaled down by it, so into [-1, 1].

    quantile: in (0, 1]. What counts as the largest value is at least 1, where this is plain clamping, and at most
    `most`. Source: Saharia et al. 2022, section 2.3. Raises ValueError for another quantile, or a `most` below 1.
    """
    if not 0 < quantile <= 1 or not most >= 1:
        raise ValueError(f"quantile {quantile} is not above 0 and at most 1, or {most} is below 1")

    def change(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        reach = torch.quantile(made.guided.flatten(1).abs().float(), quantile, dim=1).clamp(1, most)
        reach = shaped(reach, made.guided)
        return made.guided.clamp(-reach, reach) / reach

    return changed(D, change)


def dynamic_threshold(D: Guided, mimic_scale: float, percentile: float = 1.0) -> Guided:
    """Guidance whose largest values are what those at another, smaller scale would be.

    Each channel is clamped about its mean to the percentile of its distances from it, at least the largest one at
    mimic_scale, and scaled down to that one. percentile: in (0, 1]. Source: Saharia et al. 2022, section 2.3, whose
    pixels end at 1; as latents have no such end, the mimic scale says where (the Dynamic Thresholding of A1111 and
    ComfyUI, its defaults). Raises ValueError for another percentile.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"threshold_percentile {percentile} is not above 0 and at most 1")

    def change(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        mimic = (made.uncond + mimic_scale * (made.cond - made.uncond)).flatten(2)
        guided = made.guided.flatten(2)
        mean = guided.mean(dim=2, keepdim=True)
        end = (mimic - mimic.mean(dim=2, keepdim=True)).abs().amax(dim=2, keepdim=True)
        reach = torch.quantile((guided - mean).abs(), percentile, dim=2, keepdim=True).maximum(end)
        within = (guided - mean).clamp(-reach, reach) * (end / reach.clamp_min(1e-12))
        return (within + mean).view_as(made.guided)

    return changed(D, change)
