"""Layers that compute in eight bits, and the choice of a network's layers that do. K inputs, N outputs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inkwash import kernels
from inkwash.kernels import convolve_int8, int8
from inkwash.kernels.int8 import Packed
from inkwash.kernels.kernel import fastest_of_one
from inkwash.kernels.library import amx
from inkwash.kernels.linear import ACTIVATIONS
from inkwash.nn.attention import SpatialTransformer
from inkwash.nn.blocks import ResBlock
from inkwash.nn.layers import Conv2d, Linear


class Rounded:
    """Weights in eight bits, made at the first call, and again where those that they are of have changed since."""

    def __init__(self, pack: Callable[[Tensor], Packed]):
        self.pack = pack
        self.packed: Packed | None = None
        self.of: tuple[int, int] | None = None

    def __call__(self, weight: Tensor) -> Packed:
        # changes of what was made in inference mode are not counted
        now = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if self.packed is None or self.of != now:
            self.packed, self.of = self.pack(weight), now
        return self.packed


def quicker(name: str, given: tuple[Any, ...], ways: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """The result of eight bits, the first way; with AMX, which all have, of the way that is measured to be faster."""
    way = fastest_of_one(name, given, ways) if amx() else next(iter(ways))
    return ways[way]()


class Int8Linear(Linear):
    """A linear layer that rounds its weights and what it sees to eight bits, each row with a scale of its own.

    Its own weights stay, for adapters and files, and are what computes where gradients are wanted, and where that is
    faster.
    """

    def __init__(self, layer: nn.Linear):
        vars(self).update(vars(layer))  # its parameters are the given layer's
        self.rounded = Rounded(int8.pack)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(input, residual)
        ways = {
            "int8": lambda: kernels.linear_int8(input, self.rounded(self.weight), self.bias, residual),
            "exact": partial(super().forward, input, residual),
        }
        return quicker("linear_int8", (input, self.weight, self.bias, residual), ways)

    def activated(self, input: Tensor, activation: str) -> Tensor:
        return ACTIVATIONS[activation](self(input))

    def geglu(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().geglu(input)
        ways = {
            "int8": lambda: kernels.geglu_int8(input, self.rounded(self.weight), self.bias),
            "exact": partial(super().geglu, input),
        }
        return quicker("geglu_int8", (input, self.weight, self.bias), ways)


class Int8Conv2d(Conv2d):
    """A 3x3 convolution, padded by one, in eight bits. Each picture has a scale of its own."""

    def __init__(self, layer: nn.Conv2d):
        vars(self).update(vars(layer))
        self.rounded = Rounded(convolve_int8.pack)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(input)
        input = input.contiguous(memory_format=torch.channels_last)  # as it is, unless a hook has made it
        ways = {
            "int8": lambda: kernels.conv2d_int8(input, self.rounded(self.weight), self.bias),
            "exact": partial(super().forward, input),
        }
        return quicker("conv2d_int8", (input, self.weight, self.bias), ways)


def in_int8(network: nn.Module) -> None:
    """Make the layers of a network that see the picture and do most of the work compute in eight bits, in place.

    They are its transformers' linear layers and its res-blocks' convolutions. Keys and values of the context, of few
    tokens, stay as they are, as do embeddings and what changes sizes or channels alone.
    """
    for block in list(network.modules()):
        if isinstance(block, ResBlock):
            for layers in (block.in_layers, block.out_layers):
                convolution = layers[-1]
                if isinstance(convolution, nn.Conv2d) and convolution.in_channels % 4 == 0:
                    layers[-1] = Int8Conv2d(convolution)
        elif isinstance(block, SpatialTransformer):
            for path, parent in list(block.named_modules()):
                for name, layer in parent.named_children():
                    of_context = path.endswith("attn2") and name in ("to_k", "to_v")
                    if isinstance(layer, nn.Linear) and not of_context and layer.in_features % 4 == 0:
                        setattr(parent, name, Int8Linear(layer))
