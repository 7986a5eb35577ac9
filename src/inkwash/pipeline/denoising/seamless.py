"""Pictures whose opposite edges fit, for tiling a wall or a sphere."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

AXES = {"none": "", "x": "x", "y": "y", "both": "xy"}


@contextmanager
def seamless(networks: Sequence[nn.Module], axes: str) -> Iterator[None]:
    """Make convolutions of these networks wrap around at the edges, along x, y or both, within the context.

    Hooks lay the opposite edge around what a convolution sees, and cut off what its own padding made of that.
    """
    with ExitStack() as stack:
        for conv in (module for network in networks for module in network.modules()):
            if AXES[axes] and isinstance(conv, nn.Conv2d) and conv.padding != (0, 0):
                high, wide = (
                    int(p) * (axis in AXES[axes]) for p, axis in zip(conv.padding, "yx", strict=True)
                )
                before, after = wrapping(high * conv.stride[0], wide * conv.stride[1]), cutting(high, wide)
                stack.callback(conv.register_forward_pre_hook(before).remove)
                stack.callback(conv.register_forward_hook(after).remove)
        yield


def wrapping(high: int, wide: int):
    return lambda conv, args: F.pad(args[0], (wide, wide, high, high), mode="circular")


def cutting(high: int, wide: int):
    def cut(conv: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out[:, :, high : out.shape[2] - high, wide : out.shape[3] - wide]

    return cut
