"""Activations computed twice in place of kept (Chen et al. 2016)."""

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from inkwash.models.clip import CLIPLayer
from inkwash.nn.attention import SpatialTransformer
from inkwash.nn.blocks import ResBlock

BLOCKS = (ResBlock, SpatialTransformer, CLIPLayer)


def checkpoint_activations(network: nn.Module) -> None:
    """Have the blocks of a network forget what they compute until gradients need it."""
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.forward = again(module.forward)  # type: ignore[method-assign]


def again(forward: Any) -> Any:
    """A forward function that is called again for gradients."""

    def call(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False)

    return call
