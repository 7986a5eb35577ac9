"""SwinIR (Liang et al. 2021). B batch, C channels, H W pixels, s scale, w side of a window, N windows, T = w*w tokens.

Module names are those of the original checkpoints.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.nn.layers import Conv2d, Linear

MEAN = (0.4488, 0.4371, 0.4040)  # of the colours that it was trained on
SLOPE = 0.2
FAR = -100.0  # added to the products of tokens that are no neighbours
Ending = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""]


@dataclass(frozen=True)
class SwinIRConfig:
    """Config of SwinIR. Defaults are classical super-resolution x4 (SwinIR-M). ending: how the picture is enlarged.

    pixelshuffle is classical, pixelshuffledirect lightweight, nearest+conv for real pictures; "" keeps the size.
    """

    channels: int = 180
    depths: tuple[int, ...] = (6,) * 6
    num_heads: tuple[int, ...] = (6,) * 6
    window: int = 8
    mlp_width: int = 360
    scale: int = 4
    ending: Ending = "pixelshuffle"
    features: int = 64  # channels before the last convolution
    three_convs: bool = False  # SwinIR-L's three convolutions after each group in place of one
    in_channels: int = 3

    @property
    def steps(self) -> tuple[int, ...]:
        """The factors by which `pixelshuffle` and `nearest+conv` enlarge, one after the other."""
        return (3,) if self.scale == 3 else (2,) * (self.scale.bit_length() - 1)

    @property
    def multiple(self) -> int:
        """The number of pixels that sides must be multiples of."""
        return self.window

    @property
    def reach(self) -> int:
        """The largest distance, in pixels of the input, at which a pixel can still change the output."""
        return sum(self.depths) * self.window + 3 * len(self.depths) + 4

    @property
    def pixel_range(self) -> float:
        """The value of white; networks that remove JPEG's artefacts, of windows of 7, see pixels up to 255."""
        return 255.0 if self.window == 7 else 1.0


class SwinIR(nn.Module):
    """Groups of transformer blocks over windows, every second one shifted by half a window, between convolutions."""

    def __init__(self, config: SwinIRConfig = SwinIRConfig()):
        super().__init__()
        c = self.config = config
        dim, features, out = c.channels, c.features, c.in_channels
        self.conv_first = Conv2d(c.in_channels, dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        self.layers = nn.ModuleList(
            Group(c, depth, heads) for depth, heads in zip(c.depths, c.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = closing(c)
        if c.ending in ("pixelshuffle", "nearest+conv"):
            self.conv_before_upsample = nn.Sequential(Conv2d(dim, features, 3, padding=1), nn.LeakyReLU())
        if c.ending == "pixelshuffle":
            self.upsample = nn.Sequential(
                *(layer for step in c.steps for layer in shuffled(features, features, step))
            )
        elif c.ending == "pixelshuffledirect":
            self.upsample = nn.Sequential(*shuffled(dim, out, c.scale))
        elif c.ending == "nearest+conv":
            for k in range(len(c.steps)):
                self.add_module(f"conv_up{k + 1}", Conv2d(features, features, 3, padding=1))
            self.conv_hr = Conv2d(features, features, 3, padding=1)
        if c.ending != "pixelshuffledirect":
            self.conv_last = Conv2d(features if c.ending else dim, out, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, sH, sW) of pixels (B, 3, H, W), both in [0, 1] about; H and W are multiples of w."""
        mean = pixels.new_tensor(MEAN if self.config.in_channels == 3 else 0.0).view(1, -1, 1, 1)
        seen = (pixels - mean) * self.config.pixel_range
        made = self.ended(seen, self.body(self.conv_first(seen)))
        return made / self.config.pixel_range + mean

    def body(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) after all groups, and those before them."""
        tokens = self.patch_embed["norm"](x.permute(0, 2, 3, 1))
        for group in self.layers:
            tokens = group(tokens)
        return x + self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))

    def ended(self, seen: Tensor, x: Tensor) -> Tensor:
        """The output's pixels of features (B, C, H, W)."""
        match self.config.ending:
            case "pixelshuffle":
                return self.conv_last(self.upsample(self.conv_before_upsample(x)))
            case "pixelshuffledirect":
                return self.upsample(x)
            case "nearest+conv":
                x = self.conv_before_upsample(x)
                for k in range(len(self.config.steps)):
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
                    x = F.leaky_relu(self.get_submodule(f"conv_up{k + 1}")(x), SLOPE)
                return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
            case _:
                return seen + self.conv_last(x)


def closing(c: SwinIRConfig) -> nn.Module:
    """The convolutions after a group, and after all of them."""
    if not c.three_convs:
        return Conv2d(c.channels, c.channels, 3, padding=1)
    narrow = c.channels // 4
    return nn.Sequential(
        Conv2d(c.channels, narrow, 3, padding=1),
        nn.LeakyReLU(SLOPE),
        Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(SLOPE),
        Conv2d(narrow, c.channels, 3, padding=1),
    )


def shuffled(dim_in: int, dim_out: int, step: int) -> list[nn.Module]:
    """A convolution whose channels become step x step pixels."""
    return [Conv2d(dim_in, dim_out * step**2, 3, padding=1), nn.PixelShuffle(step)]


class Group(nn.Module):
    """Transformer blocks and a convolution, added to the input (equation 4)."""

    def __init__(self, c: SwinIRConfig, depth: int, num_heads: int):
        super().__init__()
        blocks = nn.ModuleList(Block(c, num_heads, k % 2 * (c.window // 2)) for k in range(depth))
        self.residual_group = nn.ModuleDict({"blocks": blocks})
        self.conv = closing(c)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens  # (B, H, W, C)
        for block in self.residual_group["blocks"]:  # type: ignore[union-attr]
            x = block(x)
        return tokens + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention within windows that begin at `shift`, and an MLP (equations 7 and 8)."""

    def __init__(self, c: SwinIRConfig, num_heads: int, shift: int):
        super().__init__()
        self.shift, self.window = shift, c.window
        self.norm1, self.norm2 = nn.LayerNorm(c.channels), nn.LayerNorm(c.channels)
        self.attn = WindowAttention(c.channels, c.window, num_heads)
        self.mlp = nn.ModuleDict(
            {"fc1": Linear(c.channels, c.mlp_width), "fc2": Linear(c.mlp_width, c.channels)}
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        turned = self.norm1(x).roll((-self.shift, -self.shift), dims=(1, 2))
        mask = apart(height, width, self.window, self.shift).to(x) if self.shift else None
        seen = self.attn(windows(turned, self.window), mask)
        x = x + whole(seen, height, width, self.window).roll((self.shift, self.shift), dims=(1, 2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset of two tokens (equation 6)."""

    def __init__(self, dim: int, window: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        away = at[:, None] - at[None] + window - 1  # T, T, 2
        self.register_buffer("offsets", away[..., 0] * (2 * window - 1) + away[..., 1], persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within windows of tokens (B, N, T, C). mask: (N, T, T), added to the products."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        )  # B, N, heads, T, d
        bias = self.relative_position_bias_table[self.get_buffer("offsets")].permute(2, 0, 1)
        bias = bias if mask is None else bias + mask[:, None]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(seen.transpose(2, 3).flatten(3))


def windows(x: Tensor, w: int) -> Tensor:
    """(B, N, T, C) of (B, H, W, C)."""
    return x.unflatten(2, (-1, w)).unflatten(1, (-1, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def whole(x: Tensor, height: int, width: int, w: int) -> Tensor:
    """(B, H, W, C) of (B, N, T, C)."""
    squares = x.unflatten(1, (height // w, width // w)).unflatten(3, (w, w))
    return squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def apart(height: int, width: int, w: int, shift: int) -> Tensor:
    """(N, T, T): FAR where a shifted window's two tokens come from opposite edges of the picture, else 0."""

    def side(size: int) -> Tensor:
        place = torch.arange(size)
        return (place >= size - w).int() + (place >= size - shift).int()

    labels = windows((3 * side(height)[:, None] + side(width))[None, ..., None], w)[0, ..., 0]  # N, T
    return FAR * (labels[:, :, None] != labels[:, None])
