"""Activations computed twice in place of kept (Chen et al. 2016), and blocks whose weights come only while they work."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from inkwash.models.clip import CLIPLayer
from inkwash.models.unet import Block, UNet
from inkwash.nn.attention import Context, SpatialTransformer
from inkwash.nn.blocks import ResBlock

BLOCKS = (ResBlock, SpatialTransformer, CLIPLayer)


def checkpoint_activations(network: nn.Module, without: Collection[nn.Module] = ()) -> None:
    """Make the blocks of a network recompute activations in the backward pass. without: modules that do so already."""
    done = {part for module in without for part in module.modules()}
    for module in network.modules():
        if isinstance(module, BLOCKS) and module not in done:
            module.forward = again(module.forward)  # type: ignore[method-assign]


def again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward function that is called again for gradients."""

    def fresh(*args: Any) -> Any:
        # a context remembers what the first call made of it, and the second one must do the same work
        return forward(*(Context(one.tokens) if isinstance(one, Context) else one for one in args))

    def call(*args: Any) -> Any:
        return checkpoint(fresh, *args, use_reentrant=False)

    return call


def swap_blocks(unet: UNet, num: int) -> list[Block]:
    """Keep the weights of the U-Net's `num` largest blocks in main memory, and bring each to the device while it computes.

    Gradients compute such a block again, so that its weights need not stay in between. Raises ValueError where fewer
    blocks have nothing that learns.
    """
    blocks = [block for block in unet.modules() if isinstance(block, Block)]
    frozen = [block for block in blocks if not any(p.requires_grad for p in block.parameters())]
    if num > len(frozen):
        raise ValueError(
            f"block_swap {num} is more than the {len(frozen)} of {len(blocks)} blocks that stay as they are"
        )
    chosen = sorted(frozen, key=lambda block: -sum(p.nbytes for p in block.parameters()))[:num]
    for block in chosen:
        home = {
            (module, name): at_home(p)
            for module in block.modules()
            for name, p in module.named_parameters(recurse=False)
        }
        device = next(block.parameters()).device
        for (module, name), p in home.items():
            setattr(module, name, p)
        block.forward = again(brought(block.forward, home, device))  # type: ignore[method-assign]
    return chosen


Home = dict[tuple[nn.Module, str], nn.Parameter]  # weights in main memory, by where they belong


def at_home(parameter: nn.Parameter) -> nn.Parameter:
    """The weight in main memory, from which a GPU can take it without waiting."""
    value = parameter.detach().cpu()
    return nn.Parameter(value.pin_memory() if parameter.is_cuda else value, requires_grad=False)


def brought(forward: Callable[..., Any], home: Home, device: torch.device) -> Callable[..., Any]:
    """A forward function within which the weights are on the device."""

    def call(*args: Any) -> Any:
        with on_device(home, device):
            return forward(*args)

    return call


@contextmanager
def on_device(home: Home, device: torch.device) -> Iterator[None]:
    """Put copies of the weights on the device within the context."""
    for (module, name), p in home.items():
        setattr(module, name, copied(p, device))
    try:
        yield
    finally:
        for (module, name), p in home.items():
            setattr(module, name, p)


def copied(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(device, non_blocking=True, copy=True), requires_grad=False)
