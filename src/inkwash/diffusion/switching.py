"""Two denoisers, each for its own noise levels (Balaji et al. 2022, section 3.1). B batch, C channels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inkwash.diffusion.guidance import Guided, Predicted

EXACT = 1 - 1e-9  # what is a rounding below the limit counts as at it


def hand_over(D: Guided, later: Guided, below: float) -> Guided:
    """D down to the sigma `below`, which is still its own, and `later` from there on.

    So SDXL's refiner ends what its base began (Podell et al. 2023, section 2.5). Their latents must mean the same.
    """

    def either(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(x: Tensor, sigma: Tensor) -> Any:
            late = (sigma.cpu() < below * EXACT).expand(len(x))
            if late.all() or not late.any():
                return (second if late[0] else first)(x, sigma)
            pick = late.to(x.device).view(-1, 1, 1, 1)  # pictures at different steps
            a, b = first(x, sigma), second(x, sigma)
            if isinstance(a, Tensor):
                return torch.where(pick, b, a)
            return Predicted(*(torch.where(pick, *pair) for pair in zip(b, a, strict=True)))

        return chosen

    return Guided(
        either(D.parts, later.parts),
        either(D.needed, later.needed),
        either(D.cond, later.cond),
        either(D.uncond, later.uncond),
    )
