"""Noise that depends on a picture's own seed alone. B batch, C channels, H W latent size."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

SPAN = 2.0**13  # sigma at the far end of the Brownian paths, beyond what any schedule starts from
DEPTH = 30  # halvings of it, down to steps of 8e-6; in between a path is straight


class NoiseSource:
    """Each call gives the next standard normal draw (B, C, H, W), picture k's from its own generator.

    Drawn in float32 on the CPU, so neither the batch nor the device changes it. Seeds lie in [0, 2^63);
    raises ValueError for others.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed} is not in 0 to 2^63 - 1")
        self.seeds = list(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.dtype = shape, device, dtype
        self.paths = lru_cache(maxsize=4)(self._paths)  # a step begins where the last one ended

    def __call__(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device, self.dtype)

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The way of each picture's Brownian path from sigma to sigma_next, over its std: (B, C, H, W).

        A path is a function of its seed alone: asked for finer steps, it gives parts of the same way. Raises
        ValueError for sigmas that are equal or not in [0, 8192].
        """
        if sigma == sigma_next or not all(0 <= s <= SPAN for s in (sigma, sigma_next)):
            raise ValueError(f"sigmas {sigma} and {sigma_next} are not two in [0, {SPAN:g}]")
        way = self.paths(sigma_next) - self.paths(sigma)
        return (way / math.sqrt(abs(sigma_next - sigma))).to(self.device, self.dtype)

    def _paths(self, sigma: float) -> Tensor:
        return torch.stack([path(seed, sigma, self.shape) for seed in self.seeds])


def path(seed: int, sigma: float, shape: tuple[int, ...]) -> Tensor:
    """The Brownian path of a seed at sigma, in float64; at 0 it is 0.

    Levy's construction: the middle of an interval is the mean of its ends and noise of a quarter of its length.
    Each node of that binary tree has a generator of its own, so any sigma is reached in DEPTH draws.
    """

    def draw(node: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(mixed(seed, node))).double()

    low, high, node = 0.0, SPAN, 1
    at_low, at_high = torch.zeros(shape, dtype=torch.float64), draw(0) * math.sqrt(SPAN)
    for _ in range(DEPTH):
        middle = (low + high) / 2
        at_middle = (at_low + at_high) / 2 + draw(node) * math.sqrt((high - low) / 4)
        if sigma < middle:
            high, at_high, node = middle, at_middle, 2 * node
        else:
            low, at_low, node = middle, at_middle, 2 * node + 1
    return torch.lerp(at_low, at_high, (sigma - low) / (high - low))


def slerp(low: Tensor, high: Tensor, share: float) -> Tensor:
    """Interpolate between two noises (B, C, H, W) along the sphere (Shoemake 1985): share 0 is low, 1 is high.

    A1111's variation: each column of H values turns by its own angle. What is equal stays as it is.
    """
    cosine = torch.cosine_similarity(low, high, dim=2).clamp(-1, 1).double()
    angle = torch.acos(cosine)[:, :, None]
    turning = [torch.sin(part * angle) / torch.sin(angle) for part in (1 - share, share)]
    first, second = (
        torch.where(angle < 1e-4, torch.full_like(part, near), part).to(low.dtype)
        for part, near in zip(turning, (1 - share, share), strict=True)
    )
    return first * low + second * high


def centred(inner: Tensor, outer: Tensor) -> Tensor:
    """Noise (B, C, h, w) laid over the middle of another (B, C, H, W), cut where it is larger."""
    made = outer.clone()
    spans = []
    for small, large in zip(inner.shape[2:], outer.shape[2:], strict=True):
        shift = abs(large - small) // 2
        num = min(small, large)
        here, there = slice(shift, shift + num), slice(0, num)
        spans.append((here, there) if large >= small else (there, here))
    (rows, rows_in), (columns, columns_in) = spans
    made[:, :, rows, columns] = inner[:, :, rows_in, columns_in]
    return made


def mixed(seed: int, node: int) -> int:
    """A seed for each node of each path, 63 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + node * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z ^ z >> 31) >> 1
