"""Guidance: from denoisers to a denoiser. B batch, C channels, H W latent size.

compose     the condition's prediction against the unconditional one, and what is known of the picture
limits      what keeps strong guidance in bounds: an interval of noise levels, rescaling, thresholding
attention   guidance away from a network whose self-attention is disturbed, through hooks
classifier  guidance by a classifier of noisy latents
"""

from inkwash.diffusion.guidance.attention import perturbed_attention_guidance, self_attention_guidance
from inkwash.diffusion.guidance.classifier import classifier_guidance
from inkwash.diffusion.guidance.compose import Guided, Predicted, cfg, compose, keep_known
from inkwash.diffusion.guidance.limits import dynamic_threshold, interval, rescale, threshold_pixels

__all__ = [
    "Guided",
    "Predicted",
    "cfg",
    "classifier_guidance",
    "compose",
    "dynamic_threshold",
    "interval",
    "keep_known",
    "perturbed_attention_guidance",
    "rescale",
    "self_attention_guidance",
    "threshold_pixels",
]
