"""Request with fewer calls of a U-Net's depths. B batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from inkwash.models.unet import Kept


class DeepCache:
    """A network that goes through its depths in every nth step only (DeepCache, Ma et al. 2024).

    What is deep in a U-Net changes little from step to step; between, its outermost blocks alone are computed. A
    step is all calls in a row of the same t; each of them, such as one for a window, keeps its own.
    """

    def __init__(self, network: Callable[..., Tensor], every: int):
        self.network, self.every = network, every
        self.step, self.call, self.t = -1, 0, float("nan")
        self.kept: dict[tuple[int, Any], Kept] = {}

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        if t[0].item() != self.t:
            self.step, self.call, self.t = self.step + 1, 0, t[0].item()
            if self.step % self.every == 0:
                self.kept.clear()
        kept = self.kept.setdefault((self.call, x.shape), Kept())
        self.call += 1
        return self.network(x, t, kept=kept, **cond)
