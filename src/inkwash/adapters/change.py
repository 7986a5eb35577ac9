"""The common part of all kinds of change of a layer: strength, scale, magnitudes, and the hooks that apply it.

out, in: the layer's channels; r: the rank; ... a convolution's kernel.
"""

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """A change of one layer's weights.

    alpha: divided by the rank, it scales the change; None is 1. dora_scale: DoRA's magnitudes m (Liu et al. 2024,
    equation 5), of the rows of W where it has `out` of them, and otherwise of the columns. diff_b: the bias's change.
    """

    alpha: float | None = None
    dora_scale: Tensor | None = None
    diff_b: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """The divisor of alpha; None where alpha scales nothing."""
        return None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def device(self) -> torch.device:
        return next(value for value in vars(self).values() if isinstance(value, Tensor)).device

    @abstractmethod
    def difference(self, weight: Tensor) -> Tensor:
        """The change of W, of its shape or of as many elements, before scale and magnitudes."""

    def delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The change of W at a strength, of its shape: what attaching and baking add to the weight."""
        return strength * self.whole(weight, self.difference(weight))

    def whole(self, weight: Tensor, difference: Tensor) -> Tensor:
        """The difference, scaled and with its magnitudes."""
        if difference.numel() != weight.numel():
            raise ValueError(
                f"its {type(self).__name__} does not fit a weight of shape {tuple(weight.shape)}"
            )
        delta = self.scale * difference.reshape(weight.shape)
        if self.dora_scale is None:
            return delta
        changed = weight + delta
        rows = self.dora_scale.shape[0] == weight.shape[0]
        axes = [axis for axis in range(weight.ndim) if axis != (0 if rows else 1)]
        # a constant to the gradients (Liu et al. 2024, equation 11)
        norm = torch.linalg.vector_norm(changed.detach().float(), dim=axes, keepdim=True).to(changed.dtype)
        return self.dora_scale.reshape(norm.shape) * changed / norm - weight

    def forward(self, layer: nn.Linear | nn.Conv2d, x: Tensor, strength: float) -> Tensor:
        """The term that is added to the layer's output."""
        offset = None if self.diff_b is None else strength * self.diff_b
        # in training these are float32 beside a network of bfloat16
        return applied(layer, x, self.delta(layer.weight, strength).to(x.dtype), offset)

    def hooks(self, layer: nn.Module, strength: float) -> list[RemovableHandle]:
        """Have a layer do as if its parameters were changed."""
        if isinstance(layer, nn.Linear | nn.Conv2d):
            return [layer.register_forward_hook(added(self, strength))]
        return exchanged(layer, self, strength)

    @classmethod
    def matches(cls, tensors: dict[str, Any]) -> bool:
        """Return True if these are the tensors of a change of this kind."""
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        known = {field.name for field in fields(cls)}
        return needed <= tensors.keys() <= known and bool(tensors.keys() - {"alpha", "dora_scale"})

    def fits_shape(self, shape: torch.Size) -> bool:
        """Return True if the change fits a weight of this shape; computes shapes alone. Raises RuntimeError if none fits."""
        return self.to("meta").delta(torch.empty(shape, device="meta")).shape == shape

    def to(self, *args: Any) -> Self:
        """The change with its tensors on another device or in another dtype."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(*args) for k, v in values.items() if isinstance(v, Tensor)})


def added(change: Change, strength: float) -> Any:
    """A hook for a layer that is linear in its parameters."""

    def hook(layer: Any, args: Any, out: Tensor) -> Tensor:
        nonlocal change
        if out.device != change.device:  # a network that comes and goes
            change = change.to(out.device)
        return out + change.forward(layer, args[0], strength)

    return hook


def exchanged(layer: nn.Module, change: Change, strength: float) -> list[RemovableHandle]:
    """Hooks for a layer that is not linear, such as a norm with SiLU: its parameters are others within a call."""
    kept: list[dict[str, Any]] = []

    def before(layer: Any, args: Any) -> None:
        nonlocal change
        kept.append(dict(layer._parameters))
        if layer.weight.device != change.device:
            change = change.to(layer.weight.device)
        layer._parameters["weight"] = layer.weight + change.delta(layer.weight, strength)
        if change.diff_b is not None:
            layer._parameters["bias"] = layer.bias + strength * change.diff_b

    def after(layer: Any, args: Any, out: Any) -> None:
        layer._parameters |= kept.pop()

    # of several adapters, the one that came last gives back first
    return [
        layer.register_forward_pre_hook(before),
        layer.register_forward_hook(after, prepend=True, always_call=True),
    ]


def applied(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output with other parameters."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def product(a: Tensor, b: Tensor, kernel: Tensor | None = None) -> Tensor:
    """a @ b; with a kernel (r, r, ...), of a (r, out) and b (r, in), the Tucker form."""
    return a @ b if kernel is None else torch.einsum("ij..., ip, jr -> pr...", kernel, a, b)


def whole(made: Tensor | None, a: Tensor | None, b: Tensor | None, kernel: Tensor | None = None) -> Tensor:
    if made is not None:
        return made
    if a is None or b is None:
        raise ValueError("a factor of the product is missing")
    return product(a, b, kernel)
