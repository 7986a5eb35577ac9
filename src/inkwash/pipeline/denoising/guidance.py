"""Which guidance a picture is drawn with, beside its scale."""

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationInfo, field_validator
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

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class GuidanceFields(BaseModel):
    """The part of a request that says how the prompt guides. By default nothing here changes anything."""

    cfg_batched: bool = True  # both predictions in one call; False takes two, for half of the memory
    cfg_rescale: float = Field(0.0, ge=0, le=1)  # phi of Lin et al. 2024; about 0.7 for what is trained on v
    guidance_start: float = Field(
        0.0, ge=0, lt=1
    )  # parts of the steps: before and after them the prompt alone
    guidance_end: float = Field(1.0, gt=0, le=1)
    mimic_scale: float | None = Field(
        None, ge=0, le=100
    )  # dynamic thresholding, to what this scale would reach
    threshold_percentile: float = Field(1.0, gt=0, le=1)  # of it
    perp_neg: float = Field(
        0.0, ge=0, le=100
    )  # weight of the negative prompt's part perpendicular to the prompt
    sag_scale: float = Field(0.0, ge=0, le=10)  # self-attention guidance; 0.75 is usual
    pag_scale: float = Field(0.0, ge=0, le=100)  # perturbed-attention guidance; 3 is usual

    @field_validator("guidance_end")
    @classmethod
    def after_start(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("guidance_start", 0):
            raise ValueError(f"{value} is not above guidance_start {info.data['guidance_start']}")
        return value


def guide(D: Guided, model: "Model", fields: GuidanceFields, cfg_scale: float, sigmas: Tensor) -> Guided:
    """D with the guidance of these fields, over sigmas (n+1,); D itself where they ask for none."""
    if fields.sag_scale:
        weak = D.cond if cfg_scale == 1 else D.uncond
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


def middle_attentions(model: "Model") -> list[CrossAttention]:
    """The self-attentions of the U-Net's middle. Raises ValueError for a model that has none."""
    named = model.unet.middle_block.named_modules()
    found = [m for name, m in named if name.endswith("attn1") and isinstance(m, CrossAttention)]
    if not found:
        raise ValueError(f"{model.name} has no attention in its middle, so sag_scale and pag_scale must be 0")
    return found
