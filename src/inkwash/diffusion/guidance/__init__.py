"""Guidance: from denoisers to a denoiser. B batch, C channels, H W latent size.

compose     the condition's prediction against the unconditional one, and what is known of the picture
scheduled   conditions that change from step to step
limits      what keeps strong guidance in bounds: an interval of noise levels, rescaling, thresholding
attention   guidance away from a network whose self-attention is disturbed, through hooks
classifier  guidance by a classifier of noisy latents
"""

from inkwash.diffusion.guidance.attention import perturbed_attention_guidance, self_attention_guidance
from inkwash.diffusion.guidance.classifier import classifier_guidance
from inkwash.diffusion.guidance.compose import (
    Guided,
    Need,
    Prediction,
    cfg,
    compose,
    compose_with_picture,
    from_own_level,
    keep_known,
)
from inkwash.diffusion.guidance.limits import dynamic_threshold, interval, rescale, threshold_pixels
from inkwash.diffusion.guidance.scheduled import scheduled

__all__ = [
    "Guided",
    "Need",
    "Prediction",
    "cfg",
    "classifier_guidance",
    "compose",
    "compose_with_picture",
    "dynamic_threshold",
    "from_own_level",
    "interval",
    "keep_known",
    "perturbed_attention_guidance",
    "rescale",
    "scheduled",
    "self_attention_guidance",
    "threshold_pixels",
]
