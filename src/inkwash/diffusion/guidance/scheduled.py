"""Guidance that changes from step to step. B batch, C channels, H W latent size, n steps."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from inkwash.diffusion.guidance.compose import Guided, Need, Prediction

T = TypeVar("T")


def scheduled(sigmas: Tensor, stages: Sequence[tuple[int, T]], make: Callable[[T], Guided]) -> Guided:
    """The denoiser of each picture's own step, where the conditions change during a run over sigmas (n+1,).

    A step holds for sigmas from its own down to, not at, the next. stages: (last step, 1 to n; what `make` needs), in
    rising order, the last one until n. make: called when its stage begins; the denoisers of the last four stages are kept.
    """
    starts = [-sigma for sigma in sigmas[:-1].tolist()]  # rising, for bisect
    ends = [end for end, _ in stages]
    at = lru_cache(maxsize=4)(lambda i: make(stages[i][1]))

    def stage(sigma: float) -> int:
        return bisect_left(ends, max(1, bisect_right(starts, -sigma)))

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        which = [stage(level) for level in sigma.expand(len(x)).tolist()]
        made = {i: at(i).predict(x, sigma, need) for i in set(which)}
        if len(made) == 1:
            return made[which[0]]
        # pictures may be at different steps
        return Prediction(
            *(
                torch.stack([made[i][field][k] for k, i in enumerate(which)])
                for field in range(len(Prediction._fields))
            )
        )

    return Guided(predict)
