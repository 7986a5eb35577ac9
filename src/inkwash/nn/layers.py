"""torch's layers, computed by `inkwash.kernels` where it has a fast path for them. B batch, C channels."""

from typing import Any

from torch import Tensor, nn

from inkwash import kernels


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return kernels.linear(input, self.weight, self.bias)


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
