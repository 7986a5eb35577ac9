"""ControlNet: a copy of the U-Net's first half that sees a hint. B batch, C channels, H W latent size.

Module names are those of the original checkpoints, without their `control_model.` in front.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from inkwash.models.unet import UNet, UNetConfig, UNetEncoder
from inkwash.nn.attention import Context
from inkwash.nn.blocks import zero_init
from inkwash.nn.layers import Conv2d

HINT_WIDTHS = (16, 32, 96, 256)  # each step but the first halves the size: a hint is 8 times the latent's


@dataclass(frozen=True)
class ControlNetConfig:
    """Config of a ControlNet. Defaults are Stable Diffusion 1.x's; SDXL's smaller ones have less transformer depth."""

    unet: UNetConfig = UNetConfig()  # of the base model; what concerns its output is not used
    hint_channels: int = 3
    global_pool: bool = (
        False  # residuals are their means over the plane, as of the one that shuffles pictures
    )


class ControlNet(UNetEncoder):
    """Residuals for a U-Net's skip connections, drawn from a hint (Zhang et al. 2023, figure 3)."""

    def __init__(self, config: ControlNetConfig = ControlNetConfig()):
        super().__init__(config.unet)
        self.hint_channels, self.global_pool = config.hint_channels, config.global_pool
        self.input_hint_block = nn.Sequential(*hint_layers(config.hint_channels, config.unet.channels))
        self.zero_convs = nn.ModuleList(nn.Sequential(zero_init(Conv2d(dim, dim, 1))) for dim in self.skips)
        self.middle_block_out = nn.Sequential(zero_init(Conv2d(self.skips[-1], self.skips[-1], 1)))

    @classmethod
    def start(cls, config: ControlNetConfig, unet: UNet) -> "ControlNet":
        """A ControlNet to begin training with: the U-Net's weights in the layers that they share, and residuals of zero."""
        network = cls(config)
        own, base = network.state_dict(), unet.state_dict()
        same = {key: base[key] for key in own if key in base and base[key].shape == own[key].shape}
        network.load_state_dict(own | same)
        return network

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        hint: Tensor,
        context: Tensor | Context | None = None,
        vector: Tensor | None = None,
        added: Tensor | None = None,
    ) -> list[Tensor]:
        """The `control` of `UNet.forward`: a residual for each input block, and one for the middle block.

        hint: (B, hint_channels, 8H, 8W) in [0, 1], or what `see` makes of it, of which one may do for the batch. The
        other inputs are the U-Net's, but for added, (1, 4 C), which the time's embedding gets too. Raises ValueError where
        one does not fit.
        """
        wanted = (self.hint_channels, 8 * x.shape[2], 8 * x.shape[3])
        seen = hint if hint.shape[2:] == x.shape[2:] else None
        if seen is None and tuple(hint.shape[1:]) != wanted:
            raise ValueError(f"the hint has shape {tuple(hint.shape[1:])}, and {wanted} is wanted")
        emb, context = self.embed(x, t, context, vector)
        emb = emb if added is None else emb + added
        residuals = []
        for i, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            x = block(x, emb, context)
            x = x if i else x + (self.input_hint_block(hint) if seen is None else seen)
            residuals.append(zero_conv(x))
        x = self.middle_block(x, emb, context)
        residuals.append(self.middle_block_out(x))
        return [r.mean(dim=(2, 3), keepdim=True) if self.global_pool else r for r in residuals]

    def see(self, hint: Tensor) -> Tensor:
        """Features (B, C, H, W) of a hint (B, hint_channels, 8H, 8W) in [0, 1]; they don't depend on the step."""
        return self.input_hint_block(hint)


def hint_layers(hint_channels: int, channels: int) -> Iterator[nn.Module]:
    """Convolutions from the hint's size to the latent's, the last one zero."""
    yield Conv2d(hint_channels, HINT_WIDTHS[0], 3, padding=1)
    for dim_in, dim_out in pairwise(HINT_WIDTHS):
        yield from (nn.SiLU(), Conv2d(dim_in, dim_in, 3, padding=1))
        yield from (nn.SiLU(), Conv2d(dim_in, dim_out, 3, padding=1, stride=2))
    yield from (nn.SiLU(), zero_init(Conv2d(HINT_WIDTHS[-1], channels, 3, padding=1)))
