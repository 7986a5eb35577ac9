"""Exponential moving average of weights."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from inkwash.training.distributed import local


class EMA:
    """Average of a module's floating-point state; decay (1+n)/(10+n) at first, so that it is not stale."""

    def __init__(self, module: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay {decay} is not in [0, 1)")
        self.decay = decay
        self.average = {name: value.clone() for name, value in floats(module).items()}

    def share(self, step: int) -> float:
        """Share of the way that the average goes towards the state at a step."""
        return 1.0 - min(self.decay, (1 + step) / (10 + step))

    def averages(self, module: nn.Module) -> dict[Tensor, Tensor]:
        """The averages of the module's parameters."""
        return {p: self.average[name] for name, p in module.named_parameters() if name in self.average}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, without: Collection[Tensor] = ()) -> None:
        """Move the average. without: parameters whose averages were moved before."""
        moved = {id(p) for p in without}
        done = {name for name, p in module.named_parameters() if id(p) in moved}
        values = {name: value for name, value in floats(module).items() if name not in done}
        if values:
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                [local(self.average[name]) for name in values],
                [local(value) for value in values.values()],
                self.share(step),
            )

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averages."""
        for name, value in floats(module).items():
            local(value).copy_(local(self.average[name]))

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(state[name])


def floats(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers, such as the running means of a norm."""
    return {name: value.detach() for name, value in module.state_dict().items() if value.is_floating_point()}
