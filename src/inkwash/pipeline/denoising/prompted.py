"""The denoiser that conditions guide. B batch, C channels, H W latent size, n steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from inkwash.adapters.low_rank import Attachment
from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.diffusion.guidance import Guided, compose, compose_with_picture, scheduled
from inkwash.prompts.conditioning import ADAPTERS, Reading, Stage


def prompted(
    denoise: ConditionedDenoiser,
    stages: Sequence[tuple[int, Stage]],
    readings: Sequence[Reading],
    sigmas: Tensor,
    scale: float,
    batched: bool = True,
    perpendicular: bool = False,
    image_scale: float | None = None,
) -> Guided:
    """The denoiser that follows a batch's prompts over sigmas (n+1,), with the adapters that they name.

    stages: of `encode_plans`; readings: each picture's. image_scale: guidance by the condition "concat" too. The others
    are as of `compose`. Raises ValueError for a scale that is not finite, and for perpendicular with image_scale.
    """
    if perpendicular and image_scale is not None:
        raise ValueError("perp_neg has no meaning with guidance by a picture; set perp_neg to 0")
    adapters = [reading.adapters for reading in {id(reading): reading for reading in readings}.values()]
    denoise = adapted(denoise, adapters)

    def make(stage: Stage) -> Guided:
        if image_scale is None:
            return compose(denoise, *stage, scale, batched, perpendicular)
        return compose_with_picture(denoise, *stage, scale, image_scale, batched)

    return scheduled(sigmas, stages, make)


def adapted(denoise: ConditionedDenoiser, attachments: Sequence[Attachment]) -> ConditionedDenoiser:
    """The denoiser with each picture's adapters attached while it is called, and not between calls."""

    def predict(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        which = cond[ADAPTERS].tolist() if ADAPTERS in cond else [0] * len(x)
        others = {name: value for name, value in cond.items() if name != ADAPTERS}
        predictions: dict[int, Tensor] = {}
        for i in sorted(set(which)):
            rows = [k for k, other in enumerate(which) if other == i]
            with attachments[i]:
                if len(rows) == len(x):
                    return denoise(x, sigma, others)
                conds = {name: value[rows] for name, value in others.items()}
                predictions |= zip(rows, denoise(x[rows], sigma.expand(len(x))[rows], conds), strict=True)
        return torch.stack([predictions[k] for k in range(len(x))])

    return predict
