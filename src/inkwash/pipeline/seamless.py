"""Pictures whose opposite edges fit, for tiling a wall or a sphere."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

AXES = {"none": (), "x": ("x",), "y": ("y",), "both": ("x", "y")}


@contextmanager
def seamless(networks: Sequence[nn.Module], axes: str) -> Iterator[None]:
    """Within, convolutions of these networks see the opposite edge beyond an edge, along x, y or both.

    Each convolution's padding moves from itself into a hook before it; both are as they were afterwards.
    """
    with ExitStack() as stack:
        for conv in (module for network in networks for module in network.modules()):
            if AXES[axes] and isinstance(conv, nn.Conv2d) and any(padding := conv.padding):
                stack.callback(setattr, conv, "padding", padding)
                stack.callback(conv.register_forward_pre_hook(wrapping(padding, axes)).remove)
                conv.padding = (0, 0)
        yield


def wrapping(padding: Sequence[Any], axes: str) -> Any:
    """A hook that pads a convolution's input (B, C, H, W) by (top and bottom, left and right)."""
    high, wide = padding

    def pad(conv: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        x = F.pad(args[0], (wide, wide, 0, 0), mode="circular" if "x" in AXES[axes] else "constant")
        return F.pad(x, (0, 0, high, high), mode="circular" if "y" in AXES[axes] else "constant")

    return pad
