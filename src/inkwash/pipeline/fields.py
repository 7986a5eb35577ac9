"""Options of guidance and of the canvas, which all tasks share."""

from typing import Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from inkwash.pipeline.option import (
    CANVAS,
    GUIDANCE,
    NEVER,
    option,
)


class GuidanceFields(BaseModel):
    """Options of guidance by the prompt. By default `cfg_scale` alone does."""

    cfg_batched: bool = option(
        True,
        "Predict with prompt and negative prompt in one call; --no-cfg-batched: in two, which halves the memory.",
        group=GUIDANCE,
    )
    cfg_rescale: float = option(
        0.0,
        "0 to 1: how much of the contrast that guidance adds is removed (Lin et al. 2024); 0.7 suits v-prediction.",
        group=GUIDANCE,
        ge=0,
        le=1,
    )
    guidance_start: float = option(
        0.0,
        "Fraction of the steps, 0 to 1, before which guidance is off.",
        group=GUIDANCE,
        a1111="Skip Early CFG",
        when=NEVER,  # read alone: Forge writes it
        ge=0,
        lt=1,
    )
    guidance_end: float = option(
        1.0, "Fraction of the steps, 0 to 1, after which guidance is off.", group=GUIDANCE, gt=0, le=1
    )
    mimic_scale: float | None = option(
        None,
        "Dynamic thresholding: limit values to what this --cfg-scale would reach.",
        group=GUIDANCE,
        ge=0,
        le=100,
    )
    threshold_percentile: float = option(
        1.0,
        "Dynamic thresholding: the quantile, above 0 to 1, that counts as the largest value.",
        group=GUIDANCE,
        gt=0,
        le=1,
    )
    perp_neg: float = option(
        0.0,
        "Weight of the negative prompt's part perpendicular to the prompt; 0 is off, 1 usual.",
        group=GUIDANCE,
        ge=0,
        le=100,
    )
    sag_scale: float = option(
        0.0, "Scale of self-attention guidance; 0 is off, 0.75 usual.", group=GUIDANCE, ge=0, le=10
    )
    pag_scale: float = option(
        0.0, "Scale of perturbed-attention guidance; 0 is off, 3 usual.", group=GUIDANCE, ge=0, le=100
    )

    @field_validator("guidance_end")
    @classmethod
    def after_start(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("guidance_start", 0):
            raise ValueError(f"{value} is not above guidance_start {info.data['guidance_start']}")
        return value


class CanvasFields(BaseModel):
    """Options of covering the plane. By default in one window with edges."""

    window: int | None = option(
        None,
        "Side in pixels of the overlapping windows that the network sees one by one; default: the whole picture.",
        group=CANVAS,
        ge=32,
        le=4096,
    )
    window_overlap: float = option(
        0.5, "Fraction of a window that the next one shares, 0 to 0.95.", group=CANVAS, ge=0, le=0.95
    )
    seamless: Literal["none", "x", "y", "both"] = option(
        "none", "Axes along which opposite edges fit: none, x, y or both.", group=CANVAS
    )
