"""InceptionV3 as FID uses it, under torchvision's names. B batch, C channels, H W map size, K classes."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.efficientnet import EPS

Layer = tuple[str, int, int | tuple[int, int], int]  # the end of its name, channels, kernel, stride
Branch = Sequence[Sequence[Layer]]  # steps one after the other, each of layers side by side


class ConvBN(nn.Module):
    """Convolution, batch norm, ReLU; of stride 1 it keeps the size unless `valid`."""

    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False
    ):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride > 1 else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, the last of which pools first (Szegedy et al. 2016, figures 5 to 7 and 10)."""

    def __init__(
        self, channels: int, branches: Sequence[Branch], pool: Callable[[Tensor], Tensor], pooled: int = 0
    ):
        super().__init__()
        self.pool, self.names, self.channels = pool, [], pooled or channels
        for branch in branches:
            width = channels
            for step in branch:
                for name, out, kernel, stride in step:
                    self.add_module(f"branch{name}", ConvBN(width, out, kernel, stride))
                width = sum(out for _, out, _, _ in step)
            self.names.append([[f"branch{layer[0]}" for layer in step] for step in branch])
        if pooled:
            self.branch_pool = ConvBN(channels, pooled, 1)
        self.projects = bool(pooled)

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for names in self.names:
            h = x
            for side_by_side in names:
                h = torch.cat([self.get_submodule(name)(h) for name in side_by_side], dim=1)
            made.append(h)
        pooled = self.pool(x)
        return torch.cat([*made, self.branch_pool(pooled) if self.projects else pooled], dim=1)


def average(x: Tensor) -> Tensor:
    """Average over 3x3 pixels, at the edges over the existing ones alone, as TensorFlow does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """Over 3x3 pixels, where FID's network has it in place of the average."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def chain(*layers: Layer) -> list[list[Layer]]:
    return [[layer] for layer in layers]


def grid_35(channels: int, pooled: int) -> Mixed:
    double = chain(("3x3dbl_1", 64, 1, 1), ("3x3dbl_2", 96, 3, 1), ("3x3dbl_3", 96, 3, 1))
    single = chain(("5x5_1", 48, 1, 1), ("5x5_2", 64, 5, 1))
    return Mixed(channels, (chain(("1x1", 64, 1, 1)), single, double), average, pooled)


def grid_17(width: int) -> Mixed:
    along, across = (1, 7), (7, 1)
    single = chain(("7x7_1", width, 1, 1), ("7x7_2", width, along, 1), ("7x7_3", 192, across, 1))
    steps = ((width, 1), (width, across), (width, along), (width, across), (192, along))
    double = chain(*((f"7x7dbl_{n}", out, kernel, 1) for n, (out, kernel) in enumerate(steps, 1)))
    return Mixed(768, (chain(("1x1", 192, 1, 1)), single, double), average, 192)


def grid_8(channels: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    def fork(name: str) -> list[Layer]:
        return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]

    single = [*chain(("3x3_1", 384, 1, 1)), fork("3x3_2")]
    double = [*chain(("3x3dbl_1", 448, 1, 1), ("3x3dbl_2", 384, 3, 1)), fork("3x3dbl_3")]
    return Mixed(channels, (chain(("1x1", 320, 1, 1)), single, double), pool, 192)


class InceptionV3(nn.Module):
    """InceptionV3 with the 1,008 classes and the pooling of the network that FID is published with.

    The file is that of pytorch-fid and torch-fidelity, of the TensorFlow graph of 2015-12-05.
    """

    def __init__(self, num_classes: int = 1008):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = grid_35(192, 32), grid_35(256, 64), grid_35(288, 64)
        shrinking = chain(("3x3dbl_1", 64, 1, 1), ("3x3dbl_2", 96, 3, 1), ("3x3dbl_3", 96, 3, 2))
        self.Mixed_6a = Mixed(288, (chain(("3x3", 384, 3, 2)), shrinking), halved)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(grid_17, (128, 160, 160, 192))
        single = chain(("3x3_1", 192, 1, 1), ("3x3_2", 320, 3, 2))
        long = (("7x7x3_1", 192, 1, 1), ("7x7x3_2", 192, (1, 7), 1), ("7x7x3_3", 192, (7, 1), 1))
        self.Mixed_7a = Mixed(768, (single, chain(*long, ("7x7x3_4", 192, 3, 2))), halved)
        self.Mixed_7b, self.Mixed_7c = grid_8(1280, average), grid_8(2048, largest)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, 2048), logits (B, K) and spatial features (B, 2023) of pictures (B, 3, 299, 299) in [-1, 1].

        Logits are without bias, as Inception scores are published. Spatial features are the first 7 channels of a 17x17
        map, which sFID compares (Nash et al. 2021).
        """
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7].flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        pooled = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
        return pooled, pooled @ self.fc.weight.T, spatial


def resized_as_tensorflow(pixels: Tensor, side: int = 299) -> Tensor:
    """Bilinear resizing (B, C, H, W) to (B, C, side, side) with corners at corners' left, as TensorFlow 1 and FID have it.

    Pixel k of the result is read at k * size / side, not at pixel centres, and nothing is filtered where it shrinks.
    """
    for axis in (2, 3):
        size = pixels.shape[axis]
        at = torch.arange(side, dtype=torch.float32, device=pixels.device) * (size / side)
        below = at.floor().long()
        above = (below + 1).clamp_max(size - 1)
        share = (at - below).to(pixels.dtype).view(-1, *[1] * (3 - axis))
        low, high = pixels.index_select(axis, below), pixels.index_select(axis, above)
        pixels = low + (high - low) * share
    return pixels
