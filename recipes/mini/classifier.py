"""A classifier of the drawings: which name, which style. B batch, S side.

Two are trained, from different seeds and of different widths, and share nothing: `features` gives the first
stage its perceptual distance, `judge` evaluates and is seen by no training.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with a residual, at half the size."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim_out)
        self.skip = nn.Conv2d(dim_in, dim_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(F.avg_pool2d(x, 2)))


class Judge(nn.Module, ABC):
    """A network that recognises the names and the styles of drawings."""

    @abstractmethod
    def features(self, pixels: Tensor) -> list[Tensor]:
        """Maps of several depths, of pixels (B, 3, S, S) in [-1, 1]."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """One vector a picture: what Fréchet distances are measured on."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of names and styles of pictures (B, 3, S, S) in [-1, 1]."""


class Classifier(Judge):
    """A small residual convolutional network, on pictures halved to 64x64 or, if not `halved`, on all of their pixels."""

    def __init__(self, num_names: int, num_styles: int, width: int = 32, halved: bool = True):
        super().__init__()
        self.halved = halved
        dims = [width, width * 2, width * 4, width * 8]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(Residual(a, b) for a, b in zip([width, *dims[:-1]], dims, strict=True))
        self.names = nn.Linear(dims[-1], num_names)
        self.styles = nn.Linear(dims[-1], num_styles)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Maps of each of the four stages, each half the size of the one before, of pixels (B, 3, S, S) in [-1, 1]."""
        x = F.relu(self.stem(F.avg_pool2d(pixels, 2) if self.halved else pixels))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def embed(self, pixels: Tensor) -> Tensor:
        """One vector (B, 8 width) a picture: what Fréchet distances are measured on."""
        return self.features(pixels)[-1].mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of names and styles of pictures (B, 3, S, S) in [-1, 1]."""
        embedding = self.embed(pixels)
        return self.names(embedding), self.styles(embedding)


def augment(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Random small shifts, scales, turns, blur and noise, so that a made picture need not match to the pixel."""
    batch = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape or (batch,), generator=rng, device=pixels.device) * (high - low) + low

    angle, scale = uniform(-0.15, 0.15), uniform(0.9, 1.15)
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), uniform(-0.1, 0.1)], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), uniform(-0.1, 0.1)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    x = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, uniform(0.0, 1.0, batch, 1, 1, 1))
    noise = torch.randn(x.shape, generator=rng, device=pixels.device) * uniform(0.0, 0.15, batch, 1, 1, 1)
    x = x * uniform(0.85, 1.15, batch, 1, 1, 1) + uniform(-0.1, 0.1, batch, 3, 1, 1) + noise
    return x.clamp(-1.0, 1.0)
