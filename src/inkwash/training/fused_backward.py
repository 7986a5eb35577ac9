"""Optimizer steps within the backward pass: each as its gradient arrives, which is then freed (Lv et al. 2023)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inkwash.kernels.adamw import Averages, adamw


class FusedBackward:
    """Steps of one module's optimizers, to be taken in a backward pass. averages, share: of `kernels.adamw`.

    moved: parameters whose averages were moved. finite: whether all gradients were; a parameter whose gradient was not
    stays as it is.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], averages: Averages, share: float):
        self.optimizers, self.averages, self.share = optimizers, averages, share
        self.moved: list[Tensor] = []
        self.finite = True

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Make backward passes within the context step the parameters."""
        handles = [
            parameter.register_post_accumulate_grad_hook(self.stepping(optimizer, group))
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stepping(self, optimizer: Optimizer, group: dict[str, Any]) -> Callable[[Tensor], None]:
        def step(parameter: Tensor) -> None:
            if parameter.grad is not None and torch.isfinite(parameter.grad).all():
                groups = optimizer.param_groups
                optimizer.param_groups = [{**group, "params": [parameter]}]
                try:
                    self.moved += adamw(optimizer, 1.0, self.averages, self.share)
                finally:
                    optimizer.param_groups = groups
            else:
                self.finite = False
            parameter.grad = None

        return step
