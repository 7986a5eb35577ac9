"""Noise that depends on a picture's own seed alone. B batch, C channels, H W latent size."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device, self.dtype = shape, device, dtype

    def __call__(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device, self.dtype)
