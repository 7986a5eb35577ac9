"""The first stage: pictures to latents and back. B batch, C channels, H W picture size, f = 2^(levels-1).

Module names are those of the LDM checkpoints; decoder.up is indexed by level, so it runs from last to first.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.attention import attend
from inkwash.nn.blocks import convolved, zero_init
from inkwash.nn.layers import Conv2d, GroupNorm


@dataclass(frozen=True)
class AutoencoderConfig:
    """Config of an autoencoder. Defaults are the KL-f8 one of Stable Diffusion 1.x."""

    in_channels: int = 3
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2  # the decoder has one more a level
    latent_channels: int = 4
    scale_factor: float = 0.18215  # 1/sigma of the first batch's latents
    # of each channel, where latents are brought to mean 0 and std scale_factor (Playground's)
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    norm_groups: int = 32
    middle_attention: bool = True
    attention: tuple[int, ...] = ()  # levels, the finest is 0, with attention after each res-block
    codebook_size: int | None = None  # how many codes; None is KL

    @property
    def factor(self) -> int:
        """The factor f: pixels that a latent pixel stands for, along each side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents, in units of the scaled latent: mean and std (B, C, H/f, W/f)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: x (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, dim_in: int, dim_out: int, norm_groups: int):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, dim_in, eps=1e-6, silu=True)
        self.conv1 = Conv2d(dim_in, dim_out, 3, padding=1)
        self.norm2 = GroupNorm(norm_groups, dim_out, eps=1e-6, silu=True)
        self.conv2 = zero_init(Conv2d(dim_out, dim_out, 3, padding=1))
        if dim_in != dim_out:
            self.nin_shortcut = Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """One-head self-attention over the pixels."""

    def __init__(self, dim: int, norm_groups: int):
        super().__init__()
        self.norm = GroupNorm(norm_groups, dim, eps=1e-6)
        self.q, self.k, self.v = (Conv2d(dim, dim, 1) for _ in range(3))
        self.proj_out = zero_init(Conv2d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = attend(q, k, v, num_heads=1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Resample(nn.Module):
    """Halves the size with a strided convolution, or doubles it with nearest neighbour and a convolution."""

    def __init__(self, dim: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = Conv2d(dim, dim, 3, padding=1) if up else Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # the checkpoints' encoder pads right and bottom only
        return convolved(self.conv, x) if self.up else self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """Two residual blocks, with attention between them where the config has it."""

    def __init__(self, dim: int, c: AutoencoderConfig):
        super().__init__()
        self.block_1 = ResnetBlock(dim, dim, c.norm_groups)
        if c.middle_attention:
            self.attn_1 = AttnBlock(dim, c.norm_groups)
        self.block_2 = ResnetBlock(dim, dim, c.norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(self.attn_1(x) if hasattr(self, "attn_1") else x)


class Level(nn.Module):
    """Res-blocks of one resolution, then a change of size where there is one."""

    def __init__(self, dims: list[int], attends: bool, resample: str | None, norm_groups: int):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, norm_groups) for a, b in pairwise(dims))
        self.attn = nn.ModuleList(AttnBlock(dim, norm_groups) for dim in dims[1:] if attends)
        if resample:
            setattr(self, resample, Resample(dims[-1], up=resample == "upsample"))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip_longest(self.block, self.attn):
            x = block(x)
            x = attn(x) if attn else x
        return getattr(self, self.resample)(x) if self.resample else x


class Encoder(nn.Module):
    """Pixels (B, 3, fH, fW) to the moments of latents (B, 2 C, H, W), or to vectors of a codebook."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        dims = [c.channels * m for m in c.channel_mult]
        self.conv_in = Conv2d(c.in_channels, c.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, dim) in enumerate(pairwise([c.channels, *dims])):
            resample = "downsample" if i < len(dims) - 1 else None
            widths = [before] + [dim] * c.num_res_blocks
            self.down.append(Level(widths, i in c.attention, resample, c.norm_groups))
        self.mid = Middle(dims[-1], c)
        self.norm_out = GroupNorm(c.norm_groups, dims[-1], eps=1e-6, silu=True)
        outputs = c.latent_channels if c.codebook_size else 2 * c.latent_channels  # no variance of a code
        self.conv_out = Conv2d(dims[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, C, H, W) to pixels (B, 3, fH, fW)."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        dims = [c.channels * m for m in c.channel_mult]
        self.conv_in = Conv2d(c.latent_channels, dims[-1], 3, padding=1)
        self.mid = Middle(dims[-1], c)
        self.up = nn.ModuleList()
        for i, (before, dim) in enumerate(zip([*dims[1:], dims[-1]], dims, strict=True)):
            widths = [before] + [dim] * (c.num_res_blocks + 1)
            self.up.append(Level(widths, i in c.attention, "upsample" if i else None, c.norm_groups))
        self.norm_out = GroupNorm(c.norm_groups, dims[0], eps=1e-6, silu=True)
        self.conv_out = Conv2d(dims[0], c.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


class FirstStage(nn.Module, ABC):
    """The stage between pixels and the U-Net's latents; `config` has its factor and its latent_channels."""

    config: Any

    @abstractmethod
    def encode(self, pixels: Tensor) -> Posterior:
        """Scaled latents (B, C, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1]; H and W must be multiples of f."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1] and not clamped, of scaled latents (B, C, H/f, W/f)."""

    def check_size(self, pixels: Tensor) -> None:
        """Check that the sides are multiples of the factor f; raise ValueError otherwise."""
        height, width = pixels.shape[2:]
        if height % self.config.factor or width % self.config.factor:
            raise ValueError(f"size {width}x{height} is not a multiple of {self.config.factor}")


class Autoencoder(FirstStage):
    """Base of the two kinds of autoencoder, which differ in the layer between encoder and decoder."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        encoded = self.encoder.conv_out.out_channels
        self.quant_conv = Conv2d(encoded, encoded, 1)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1)

    def encoded(self, pixels: Tensor) -> Tensor:
        self.check_size(pixels)
        return self.quant_conv(self.encoder(pixels))


class AutoencoderKL(Autoencoder):
    """Variational autoencoder with a small KL term (Rombach et al. 2022, section 3.1)."""

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()):
        super().__init__(config)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unscaled latents of pixels (B, 3, H, W) in [-1, 1]."""
        mean, logvar = self.encoded(pixels).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor) -> Posterior:
        """Scaled latents (B, C, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1]; H and W must be multiples of f."""
        mean, logvar = self.moments(pixels)
        shift, scale = self.units(mean)
        return Posterior((mean - shift) * scale, torch.exp(0.5 * logvar) * scale)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1] and not clamped, of scaled latents (B, C, H/f, W/f)."""
        shift, scale = self.units(latent)
        return self.decoder(self.post_quant_conv(latent / scale + shift))

    def units(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The offset that is subtracted from latents, and the factor that they are then multiplied by: (C, 1, 1)."""
        c = self.config
        mean = c.latents_mean or (0.0,) * c.latent_channels
        scale = [c.scale_factor / std for std in c.latents_std or (1.0,) * c.latent_channels]
        return latent.new_tensor(mean).view(-1, 1, 1), latent.new_tensor(scale).view(-1, 1, 1)


class Codebook(nn.Module):
    """The codes that latents are rounded to (van den Oord et al. 2017, section 3.1). K codes, C channels."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes (B, C, H, W) of latents (B, C, H, W), and their indices (B, H, W).

        The codes' gradient goes to z, as if nothing had been rounded.
        """
        points, codes = z.detach().permute(0, 2, 3, 1).flatten(0, 2).float(), self.embedding.weight.float()
        # a piece at a time: all distances of a large picture would take gigabytes
        indices = torch.cat([torch.cdist(some, codes).argmin(dim=1) for some in points.split(4096)])
        indices = indices.view(z.shape[0], *z.shape[2:])
        return z + (self.codes(indices) - z).detach(), indices

    def codes(self, indices: Tensor) -> Tensor:
        """The codes (B, C, H, W) of indices (B, H, W), each in 0 to K-1."""
        return self.embedding(indices).permute(0, 3, 1, 2)


class AutoencoderVQ(Autoencoder):
    """Autoencoder with a codebook (Esser et al. 2021; Rombach et al. 2022, section 3.1).

    A diffusion model works on latents that are not rounded: the codebook is the decoder's first layer.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self.quantize = Codebook(config.codebook_size or 0, config.latent_channels)

    def encode(self, pixels: Tensor) -> Posterior:
        """Scaled latents (B, C, H/f, W/f), not rounded and without variance, of pixels (B, 3, H, W) in [-1, 1]."""
        latent = self.encoded(pixels) * self.config.scale_factor
        return Posterior(latent, torch.zeros_like(latent))

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1] and not clamped, of scaled latents, which are rounded to codes."""
        return self.decoder(self.post_quant_conv(self.quantize(latent / self.config.scale_factor)[0]))


@dataclass(frozen=True)
class PixelConfig:
    """No first stage: the U-Net works on pixels."""

    in_channels: int = 3
    scale_factor: float = 1.0
    factor: int = 1
    # dynamic thresholding (Saharia et al. 2022, section 2.3): the quantile that counts as the largest value, and the most
    # that it is scaled down from; None: predictions are clamped to [-1, 1]
    threshold: tuple[float, float] | None = None
    variances: bool = False  # whether the sampler `ddpm` has the variances that the U-Net predicts

    @property
    def latent_channels(self) -> int:
        return self.in_channels


class Pixels(FirstStage):
    """The first stage of a model without one: f = 1, pixels are the latents."""

    def __init__(self, config: PixelConfig = PixelConfig()):
        super().__init__()
        self.config = config

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) as they are."""
        return Posterior(pixels, torch.zeros_like(pixels))

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, 3, H, W) as they are."""
        return latent
