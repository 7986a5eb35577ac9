"""The kinds of guidance that a picture is drawn with, beside its scale."""

import math

from torch import Tensor

from inkwash.diffusion.guidance import (
    Guided,
    dynamic_threshold,
    interval,
    perturbed_attention_guidance,
    rescale,
    self_attention_guidance,
)
from inkwash.nn.attention import CrossAttention
from inkwash.pipeline.fields import GuidanceFields
from inkwash.pipeline.model import Model


def guide(D: Guided, model: Model, fields: GuidanceFields, cfg_scale: float, sigmas: Tensor) -> Guided:
    """D with the guidance of these fields, over sigmas (n+1,); D itself where they ask for none."""
    if fields.sag_scale:
        weak = "cond" if cfg_scale == 1 else "uncond"
        D = self_attention_guidance(D, weak, middle_attentions(model)[0], fields.sag_scale)
    if fields.pag_scale:
        D = perturbed_attention_guidance(D, middle_attentions(model), fields.pag_scale)
    if fields.mimic_scale is not None:
        D = dynamic_threshold(D, fields.mimic_scale, fields.threshold_percentile)
    D = rescale(D, fields.cfg_rescale)
    if (fields.guidance_start, fields.guidance_end) != (0, 1):
        steps = len(sigmas) - 1
        first, last = (math.ceil(part * steps) for part in (fields.guidance_start, fields.guidance_end))
        # samplers that look between steps, or above the first, are guided there too
        D = interval(D, low=float(sigmas[last]), high=float(sigmas[first]) if first else math.inf)
    return D


def middle_attentions(model: Model) -> list[CrossAttention]:
    """The self-attentions of the U-Net's middle. Raises ValueError for a model that has none."""
    named = model.unet.middle_block.named_modules()
    found = [m for name, m in named if name.endswith("attn1") and isinstance(m, CrossAttention)]
    if not found:
        raise ValueError(f"{model.name} has no attention in its middle, so sag_scale and pag_scale must be 0")
    return found
