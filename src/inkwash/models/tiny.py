"""The tiny autoencoder: latents to pictures and back in a few milliseconds, for previews. B batch, C channels.

Module names are those of the TAESD checkpoints, with `encoder.` and `decoder.` in front.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.autoencoder import FirstStage, Posterior
from inkwash.nn.layers import Conv2d

# what the layers are, in order: a block, a convolution that halves, one after doubling, and those at the ends
ENCODER = ("in", "block", *(("half", "block", "block", "block") * 3), "out")
DECODER = ("clamp", "in", "relu", *(("block", "block", "block", "double", "conv") * 3), "block", "out")


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Config of a tiny autoencoder. Defaults are TAESD's and TAESDXL's, which differ in their weights alone."""

    in_channels: int = 3
    channels: int = 64
    latent_channels: int = 4
    encodes: bool = True  # files of an encoder or a decoder alone have the other half False
    decodes: bool = True

    @property
    def factor(self) -> int:
        """The factor f: pixels that a latent pixel stands for, along each side."""
        return 2 ** ENCODER.count("half")


class TinyBlock(nn.Module):
    """Three convolutions with a residual."""

    def __init__(self, channels: int):
        super().__init__()
        conv = [Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Keeps latents within 3, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def layers(kinds: tuple[str, ...], dim_in: int, dim: int, dim_out: int) -> nn.Sequential:
    make = {
        "clamp": Clamp,
        "relu": nn.ReLU,
        "block": lambda: TinyBlock(dim),
        "half": lambda: Conv2d(dim, dim, 3, padding=1, stride=2, bias=False),
        "double": lambda: nn.Upsample(scale_factor=2),
        "conv": lambda: Conv2d(dim, dim, 3, padding=1, bias=False),
        "in": lambda: Conv2d(dim_in, dim, 3, padding=1),
        "out": lambda: Conv2d(dim, dim_out, 3, padding=1),
    }
    return nn.Sequential(*(make[kind]() for kind in kinds))


class TinyAutoencoder(FirstStage):
    """Takes the place of `AutoencoderKL`, of which it is distilled (TAESD, Bohan 2023). Latents are scaled ones."""

    def __init__(self, config: TinyAutoencoderConfig = TinyAutoencoderConfig()):
        super().__init__()
        self.config = c = config
        if c.encodes:
            self.encoder = layers(ENCODER, c.in_channels, c.channels, c.latent_channels)
        if c.decodes:
            self.decoder = layers(DECODER, c.latent_channels, c.channels, c.in_channels)

    def encode(self, pixels: Tensor) -> Posterior:
        """Scaled latents (B, C, H/f, W/f), without spread, of pixels (B, 3, H, W) in [-1, 1]."""
        self.check_half("encoder", self.config.encodes)
        self.check_size(pixels)
        mean = self.encoder((pixels + 1) / 2)
        return Posterior(mean, torch.zeros_like(mean))

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1] and not clamped, of scaled latents (B, C, H/f, W/f)."""
        self.check_half("decoder", self.config.decodes)
        return self.decoder(latent) * 2 - 1

    def check_half(self, name: str, here: bool) -> None:
        """Check that the encoder or the decoder is there; raise ValueError otherwise."""
        if not here:
            raise ValueError(
                f"the model's tiny autoencoder has no {name}; give its file too, with --part (parts= in Python)"
            )
