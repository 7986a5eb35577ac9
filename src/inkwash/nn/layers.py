"""torch's layers, computed by `inkwash.kernels` where it has a fast path for them. B batch, C channels."""

from typing import Any

from torch import Tensor, nn

from inkwash import kernels
from inkwash.kernels.linear import ACTIVATIONS


class Linear(nn.Linear):
    """A linear layer, and the residual added to its output where one is given."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return kernels.linear(input, self.weight, self.bias, residual)

    def activated(self, input: Tensor, activation: str) -> Tensor:
        """The output after one of `inkwash.kernels.linear.ACTIVATIONS`."""
        if hooked(self):
            return ACTIVATIONS[activation](self(input))
        return kernels.activated_linear(input, self.weight, self.bias, activation)

    def geglu(self, input: Tensor) -> Tensor:
        """The first half of the output's channels times gelu of the second."""
        return kernels.geglu_linear(input, self.weight, self.bias)


def hooked(module: nn.Module) -> bool:
    """Return True if hooks (of adapters or others) see or change the module's input or output."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def plus(module: nn.Module, residual: Tensor | None, *args: Any) -> Tensor:
    """The module's output and the residual: added by the module itself, unless its hooks want its own output."""
    if residual is None:
        return module(*args)
    return module(*args) + residual if hooked(module) else module(*args, residual=residual)


class Conv2d(nn.Conv2d):
    """A square convolution, padded with zeros; undivided, undilated."""

    def forward(self, input: Tensor) -> Tensor:
        return kernels.conv2d(input, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class GroupNorm(nn.GroupNorm):
    """GroupNorm, and SiLU after it where wanted: one pass over (B, C, H, W) instead of two."""

    def __init__(self, *args: Any, silu: bool = False, **options: Any):
        super().__init__(*args, **options)
        self.silu = silu

    def forward(self, input: Tensor) -> Tensor:
        return kernels.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, self.silu)
