"""Two denoisers, each for its own noise levels (Balaji et al. 2022, section 3.1). B batch, C channels."""

import torch
from torch import Tensor

from inkwash.diffusion.guidance import Guided, Need, Prediction

EXACT = 1 - 1e-9  # what is a rounding below the limit counts as at it


def switch_denoiser(D: Guided, later: Guided, below: float) -> Guided:
    """D down to the sigma `below`, which is still its own, and `later` from there on.

    So SDXL's refiner ends what its base began (Podell et al. 2023, section 2.5). Their latents must mean the same.
    """

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        late = (sigma.cpu() < below * EXACT).expand(len(x))
        if late.all() or not late.any():
            return (later if late[0] else D).predict(x, sigma, need)
        pick = late.to(x.device).view(-1, 1, 1, 1)  # pictures at different steps
        pairs = zip(later.predict(x, sigma, need), D.predict(x, sigma, need), strict=True)
        return Prediction(*(torch.where(pick, *pair) for pair in pairs))

    return Guided(predict)
