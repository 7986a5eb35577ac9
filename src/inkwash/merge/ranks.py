"""Matrices as LoRAs of a rank: by singular values, of which as many stay as a `Size` says.

out, in: a layer's channels; r: the rank; ... a convolution's kernel.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from inkwash.adapters.kinds import LoRA

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Size(BaseModel):
    """Limits on the number of singular values that stay: all limits that are given hold, and at least one value stays.

    rank, conv_rank: at most so many, the latter of convolutions that are wider than a pixel. energy: the fewest whose
    squares add up to this share of all. ratio: those above this share of the largest. quantile: the first ones, as long as
    they add up to less than this share of all, as LyCORIS counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: Count | None = None
    conv_rank: Count | None = None
    energy: Share | None = None
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    quantile: Share | None = None

    @property
    def is_limited(self) -> bool:
        return any((self.rank, self.conv_rank, self.energy, self.ratio, self.quantile))

    def of(self, values: Tensor, wide: bool) -> int:
        """Number of singular values that stay, from the largest on. wide: of a convolution that is wider than a pixel."""
        limits, values = [len(values)], values.double()
        if most := (self.conv_rank or self.rank) if wide else self.rank:
            limits.append(most)
        if self.energy is not None:
            energies = values.square().cumsum(0)
            limits.append(1 + int((energies < self.energy * energies[-1]).sum()))
        if self.ratio is not None:
            limits.append(int((values > self.ratio * values[0]).sum()))
        if self.quantile is not None:
            limits.append(int((values.cumsum(0) < self.quantile * values.sum()).sum()))
        return max(1, min(limits))


def truncated(delta: Tensor, size: Size) -> LoRA:
    """The nearest LoRA of a change (out, in, ...)."""
    u, values, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    return of_values(u, values, v, delta.shape, size)


def truncated_product(up: Tensor, down: Tensor, size: Size) -> LoRA:
    """The nearest LoRA of the change up @ down, of (out, r) and (r, in, ...), which is not computed where r is small."""
    shape = torch.Size((up.shape[0], *down.shape[1:]))
    down = down.flatten(1)
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return truncated((up @ down).reshape(shape), size)
    (left, first), (right, second) = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    u, values, v = torch.linalg.svd(first @ second.mT, full_matrices=False)
    return of_values(left @ u, values, v @ right.mT, shape, size)


def of_values(u: Tensor, values: Tensor, v: Tensor, shape: torch.Size, size: Size) -> LoRA:
    """A LoRA from a singular value decomposition. Both factors get the values' roots, so that half precision suits both."""
    rank = size.of(values, wide=shape[2:].numel() > 1)
    roots = values[:rank].sqrt()
    return LoRA(
        alpha=float(rank),
        lora_down=(roots[:, None] * v[:rank]).reshape(rank, *shape[1:]),
        lora_up=(u[:, :rank] * roots).reshape(shape[0], rank, *[1] * (len(shape) - 2)),
    )
