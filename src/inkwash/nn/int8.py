"""Linear layers that compute in eight bits. K inputs, N outputs."""

import torch
from torch import Tensor, nn

from inkwash import kernels
from inkwash.kernels.int8 import Packed, pack
from inkwash.nn.attention import SpatialTransformer
from inkwash.nn.layers import Linear


class Int8Linear(Linear):
    """A linear layer that rounds its weights and what it sees to eight bits, each row with a scale of its own.

    Its own weights stay, for adapters and files, and are what computes where gradients are wanted. They are rounded at
    the first call, and again where they have changed since.
    """

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)  # its parameters are the given layer's
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.packed: Packed | None = None
        self.packed_of: tuple[int, int] | None = None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(input, residual)
        return kernels.linear_int8(input, self.rounded(), self.bias, residual)

    def geglu(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().geglu(input)
        return kernels.geglu_int8(input, self.rounded(), self.bias)

    def rounded(self) -> Packed:
        weight = self.weight
        # changes of what was made in inference mode are not counted
        now = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if self.packed is None or self.packed_of != now:
            self.packed, self.packed_of = pack(weight), now
        return self.packed


def in_int8(network: nn.Module) -> None:
    """Make the layers of a network's transformers that see the picture's tokens `Int8Linear`s, in place.

    Keys and values of the context, of few tokens, stay as they are, as do convolutions and embeddings.
    """
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    for transformer in transformers:
        for path, parent in list(transformer.named_modules()):
            for name, layer in parent.named_children():
                of_context = path.endswith("attn2") and name in ("to_k", "to_v")
                if isinstance(layer, nn.Linear) and not of_context and layer.in_features % 4 == 0:
                    setattr(parent, name, Int8Linear(layer))
