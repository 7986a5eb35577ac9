"""Exponential moving average of weights."""

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's floating-point state; decay (1+n)/(10+n) at first, so that it is not stale."""

    def __init__(self, module: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay {decay} is not in [0, 1)")
        self.decay = decay
        self.average = {name: value.clone() for name, value in floats(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in floats(module).items():
            self.average[name].lerp_(value, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(state[name])


def floats(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers, such as the running means of a norm."""
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
