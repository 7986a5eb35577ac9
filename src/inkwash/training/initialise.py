"""Weights to start a training from."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def preserve_variance(module: M) -> M:
    """Give every convolution and linear layer unit gain (LeCun et al. 1998) and no bias.

    Layers that are zero on purpose (the ends of residual branches) stay zero. torch's own start shrinks the
    signal to a third of its variance a layer, and in networks as thin as this the biases then drown it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.any():
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
