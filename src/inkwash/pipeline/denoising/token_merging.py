"""Request with fewer tokens where there are the most. B batch, T = H W tokens, C channels, G groups of tokens."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.unet import UNet
from inkwash.nn.attention import BasicTransformerBlock, CrossAttention, SpatialTransformer

CHUNK = 1024  # tokens whose likeness to all others is in memory at once


class TokenMerging:
    """A network whose largest self-attentions see the means of tokens that are alike (Bolya and Hoffman 2023).

    Of each 2x2 places one, drawn anew in each layer and step, takes in others that are like it, until a `ratio` of all
    tokens is gone; afterwards all of a group get what its mean got. The draws follow from t alone, so that no picture
    depends on the rest of its batch. Raises ValueError for a U-Net without transformers.
    """

    def __init__(self, network: Callable[..., Tensor], unet: UNet, ratio: float):
        self.network, self.ratio, self.transformers = network, ratio, outermost(unet)
        if not self.transformers:
            raise ValueError(
                f"token_merging {ratio}: the U-Net has no transformer whose tokens could be merged"
            )

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(round(1000 * t[0].item()))
        with ExitStack() as stack:
            for transformer in self.transformers:
                merging = Merging(self.ratio, random)
                stack.callback(transformer.register_forward_pre_hook(merging.see).remove)
                for attention in self_attentions(transformer):
                    stack.callback(attention.register_forward_pre_hook(merging.merge).remove)
                    stack.callback(attention.register_forward_hook(merging.unmerge).remove)
            return self.network(x, t, **cond)


def outermost(unet: UNet) -> list[SpatialTransformer]:
    """The transformers of the first level that has any with attention to the tokens themselves."""
    c = unet.config
    levels, blocks = len(c.channel_mult), c.res_blocks[0] + 1
    placed = [((i - 1) // blocks, block) for i, block in enumerate(unet.input_blocks)]
    placed += [(levels - 1 - i // blocks, block) for i, block in enumerate(unet.output_blocks)]
    found = [
        (level, layer)
        for level, block in placed
        for layer in block.children()
        if isinstance(layer, SpatialTransformer) and self_attentions(layer)
    ]
    first = min((level for level, _ in found), default=0)
    return [layer for level, layer in found if level == first]


def self_attentions(transformer: SpatialTransformer) -> list[CrossAttention]:
    blocks = [block for block in transformer.transformer_blocks if isinstance(block, BasicTransformerBlock)]
    return [block.attn1 for block in blocks if not block.only_cross]


class Merging:
    """The hooks of one transformer."""

    def __init__(self, ratio: float, random: torch.Generator):
        self.ratio, self.random = ratio, random
        self.size = 0, 0
        self.groups: list[Tensor] = []

    def see(self, transformer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.size = args[0].shape[2], args[0].shape[3]

    def merge(self, attention: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, height, width = args[0], *self.size
        corners = torch.randint(4, (height // 2, width // 2), generator=self.random).to(x.device)
        # row by row, since a product of several may be summed in another order
        self.groups = [alike(row, width, corners, self.ratio) for row in x]
        return torch.stack([means(row, group) for row, group in zip(x, self.groups, strict=True)]), *args[1:]

    def unmerge(self, attention: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.stack([row[group] for row, group in zip(out, self.groups, strict=True)])


def alike(x: Tensor, width: int, corners: Tensor, ratio: float) -> Tensor:
    """The group, one of G, of each of the tokens (T, C), (T,); those that are merged are a `ratio` of T.

    corners: (H // 2, W // 2), 0 to 3, the place in each 2x2 that the others may go to.
    """
    num, (rows, columns) = len(x), corners.shape
    num_merged = min(int(ratio * num), num - corners.numel()) if corners.numel() else 0
    if not num_merged:
        return torch.arange(num, device=x.device)
    y, z = (2 * torch.arange(size, device=x.device) for size in (rows, columns))
    targets = ((y[:, None] + corners // 2) * width + z + corners % 2).flatten()
    is_other = torch.ones(num, dtype=torch.bool, device=x.device).index_fill_(0, targets, False)
    others = is_other.nonzero().flatten()
    unit = F.normalize(x, dim=1)
    found = [(unit[some] @ unit[targets].T).max(1) for some in others.split(CHUNK)]
    cosine, nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = cosine.argsort(descending=True, stable=True)
    merged, left = order[:num_merged], order[num_merged:]
    group = torch.empty(num, dtype=torch.long, device=x.device)
    group[targets] = torch.arange(len(targets), device=x.device)
    group[others[left]] = len(targets) + torch.arange(len(left), device=x.device)
    group[others[merged]] = nearest[merged]
    return group


def means(x: Tensor, group: Tensor) -> Tensor:
    """The mean (G, C) of each group of tokens (T, C), summed in float32."""
    num = int(group.max()) + 1
    sums = x.new_zeros(num, x.shape[1], dtype=torch.float32).index_add_(0, group, x.float())
    return (sums / group.bincount(minlength=num)[:, None]).to(x.dtype)
