"""The U-Net of the whole family. B batch, C channels, H W latent size, T context tokens.

Index layout, that of the LDM and SGM checkpoints and of merge-block lists. With L res-blocks a level:

    input_blocks.0            first convolution
    input_blocks.1 ...        for each level: L blocks [ResBlock, attention?], then, but for the last level,
                              one block [Downsample, or a ResBlock that halves the size]
    middle_block              [ResBlock, attention, ResBlock]
    output_blocks.0 ...       for each level from the last to the first: L+1 blocks [ResBlock, attention?];
                              the last one of a level ends in an Upsample, or a ResBlock that doubles the size
    out                       norm, SiLU, last convolution

Attention is a SpatialTransformer; without a context an AttentionBlock; with a text_dim, as Imagen's, a TextAttentionBlock.
SD1 and SD2 have input_blocks 0-11 and output_blocks 0-11, SDXL 0-8 and 0-8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inkwash.nn.attention import AttentionBlock, Context, SpatialTransformer, TextAttentionBlock
from inkwash.nn.blocks import ACTS, Downsample, ResBlock, Upsample, normed, zero_init
from inkwash.nn.embeddings import timestep_embedding
from inkwash.nn.layers import Conv2d, Linear
from inkwash.nn.pooling import AttentionPooling


@dataclass(frozen=True)
class UNetConfig:
    """Config of a U-Net. Defaults are Stable Diffusion 1.x; a family is this value with fields replaced."""

    in_channels: int = 4  # 9 inpainting, 5 depth, 8 InstructPix2Pix, 7 upscaler: extra channels beside x
    out_channels: int = 4
    channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int | tuple[int, ...] = 2  # of every level, or of each one
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)  # per level; 0 is no attention
    transformer_depth_middle: int | None = 1  # 0 leaves both ResBlocks, None (SSD-1B, Vega) the first alone
    transformer_depth_output: tuple[tuple[int, ...], ...] | None = (
        None  # per level and block, where not as above
    )
    context_dim: int | None = 768  # None: no context, so attention is over the pixels alone, of depth 1
    num_heads: int | None = 8  # exactly one of num_heads (SD1) ...
    head_dim: int | None = None  # ... and head_dim (SD2, SDXL: 64)
    linear_projections: bool = False  # SD2, SDXL
    only_cross_attention: tuple[bool, ...] | None = (
        None  # per level: attn1 sees the context too (x4 upscaler)
    )
    vector_dim: int | None = None  # SDXL 2816, refiner 2560, unCLIP 1536 and 2048
    image_vector: bool = (
        False  # the vector is a picture's and its noise level's (unCLIP), not text's and sizes'
    )
    num_classes: int | None = None  # class or noise-level embedding: the vector is then (B,) indices
    time_cond_dim: int | None = None  # of an embedding beside the time: LCM's of its guidance scale, 256
    norm_groups: int = 32
    scale_shift_norm: bool = False  # how res-blocks see the time: see `ResBlock`
    resblock_updown: bool = False  # sizes change in res-blocks
    # TensorFlow's network of Ho et al. 2020 has True, 1, 0 and 1e-6
    sin_first: bool = False
    freq_shift: int = 0
    downsample_padding: int = 1
    norm_eps: float = 1e-5
    # Imagen's networks (Saharia et al. 2022, section 2.3 and appendix B), as DeepFloyd IF has them
    act: str = "silu"  # or "gelu"
    text_dim: int | None = (
        None  # of the text's vectors, which are pooled into the time and projected to context_dim
    )
    text_heads: int = 64  # of that pooling
    level_embedding: bool = False  # the vector is (B,) noise levels of what lies beside x, seen as t is
    learned_variance: bool = False  # half of out_channels
    residual_scale: float = 1.0  # by which res-blocks divide what they give; 1 / 0.7071 in IF's upscalers

    def __post_init__(self) -> None:
        if len(self.transformer_depth) != len(self.channel_mult):
            raise ValueError(
                f"transformer_depth {self.transformer_depth} needs one entry for each of {self.channel_mult}"
            )
        levels, outputs = len(self.channel_mult), self.transformer_depth_output
        if outputs and [len(depths) for depths in outputs] != [num + 1 for num in self.res_blocks]:
            raise ValueError(
                f"transformer_depth_output {outputs} needs, by level, {[num + 1 for num in self.res_blocks]} entries"
            )
        if len(self.res_blocks) != levels:
            raise ValueError(
                f"num_res_blocks {self.num_res_blocks} needs one entry for each of {self.channel_mult}"
            )
        if self.act not in ACTS:
            raise ValueError(f"act {self.act!r} is not one of {', '.join(ACTS)}")
        if self.only_cross_attention and len(self.only_cross_attention) != levels:
            raise ValueError(f"only_cross_attention {self.only_cross_attention} needs {levels} entries")
        depths = [*self.transformer_depth, self.transformer_depth_middle or 0, *sum(self.outputs, ())]
        if self.context_dim is None and (max(depths) > 1 or self.only_cross_attention):
            raise ValueError(f"without a context, attention has depth 1 and not {depths}")
        if self.freq_shift not in (0, 1) or self.downsample_padding not in (0, 1):
            raise ValueError(
                f"freq_shift {self.freq_shift} and downsample_padding {self.downsample_padding} should be 0 or 1"
            )
        if (self.num_heads is None) == (self.head_dim is None):
            raise ValueError(
                f"give num_heads or head_dim, not both or none: {self.num_heads}, {self.head_dim}"
            )
        if self.vector_dim is not None and self.num_classes is not None:
            raise ValueError(
                f"give vector_dim or num_classes, not both: {self.vector_dim}, {self.num_classes}"
            )

    @property
    def attends(self) -> bool:
        """True if the network needs a context."""
        middle = bool(self.transformer_depth_middle)
        attention = any(self.transformer_depth) or middle or any(map(any, self.outputs))
        return attention and self.context_dim is not None

    @property
    def res_blocks(self) -> tuple[int, ...]:
        """Number of res-blocks of each level on the way down; there is one more on the way up."""
        num = self.num_res_blocks
        return (num,) * len(self.channel_mult) if isinstance(num, int) else num

    @property
    def predicted_channels(self) -> int:
        """Channels of the prediction: out_channels without variances."""
        return self.out_channels // 2 if self.learned_variance else self.out_channels

    @property
    def outputs(self) -> tuple[tuple[int, ...], ...]:
        """Transformer depth of each level's output blocks, in the order in which they are called."""
        pairs = zip(self.transformer_depth, self.res_blocks, strict=True)
        same = tuple((depth,) * (num + 1) for depth, num in pairs)
        return self.transformer_depth_output or same

    def heads(self, dim: int) -> int:
        """Number of heads of attention over so many channels."""
        return self.num_heads or dim // (self.head_dim or dim)

    @property
    def factor(self) -> int:
        """Latent sizes are best multiples of this; others work, their halves rounded up."""
        return 2 ** (len(self.channel_mult) - 1)


class Block(nn.Sequential):
    """A run of layers; each gets the inputs that it takes besides x."""

    def forward(
        self, x: Tensor, emb: Tensor, context: Context | None, size: tuple[int, int] | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, size)
            elif isinstance(layer, SpatialTransformer | TextAttentionBlock):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNetEncoder(nn.Module):
    """The half that a U-Net and its ControlNets share: embeddings, input blocks and the middle block.

    `skips` are the channels of each input block's output, in order.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        emb_channels = 4 * c.channels

        def mlp(dim: int) -> nn.Sequential:
            return nn.Sequential(Linear(dim, emb_channels), ACTS[c.act](), Linear(emb_channels, emb_channels))

        self.time_embed = mlp(c.channels)
        if c.time_cond_dim is not None:
            self.time_cond_proj = Linear(c.time_cond_dim, c.channels, bias=False)
        if c.vector_dim is not None:
            self.label_emb = nn.Sequential(mlp(c.vector_dim))
        elif c.num_classes is not None:
            self.label_emb = nn.Embedding(c.num_classes, emb_channels)
        elif c.level_embedding:
            self.aug_proj = mlp(c.channels)
        if c.text_dim is not None:
            self.encoder_proj = Linear(c.text_dim, c.context_dim or 0)
            self.encoder_pooling = nn.Sequential(
                nn.LayerNorm(c.text_dim),
                AttentionPooling(c.text_dim, c.text_heads),
                Linear(c.text_dim, emb_channels),
                nn.LayerNorm(emb_channels),
            )

        dim = c.channels
        self.skips = [dim]
        self.input_blocks = nn.ModuleList([Block(Conv2d(c.in_channels, dim, 3, padding=1))])
        for level, (mult, depth) in enumerate(zip(c.channel_mult, c.transformer_depth, strict=True)):
            for _ in range(c.res_blocks[level]):
                dim_out = mult * c.channels
                self.input_blocks.append(
                    Block(self.res(dim, dim_out), *self.attention(dim_out, depth, level))
                )
                dim = dim_out
                self.skips.append(dim)
            if level < len(c.channel_mult) - 1:
                down = (
                    self.res(dim, dim, "down") if c.resblock_updown else Downsample(dim, c.downsample_padding)
                )
                self.input_blocks.append(Block(down))
                self.skips.append(dim)

        self.middle_block = Block(self.res(dim, dim))
        if c.transformer_depth_middle is not None:
            self.middle_block.extend([*self.attention(dim, c.transformer_depth_middle), self.res(dim, dim)])

    def res(self, dim_in: int, dim_out: int, resample: str | None = None) -> ResBlock:
        c = self.config
        args = (4 * c.channels, dim_out, c.norm_groups, c.norm_eps, c.scale_shift_norm, resample)
        return ResBlock(dim_in, *args, c.act, c.residual_scale)

    def attention(self, dim: int, depth: int, level: int | None = None) -> list[nn.Module]:
        c = self.config
        if not depth:
            return []
        if c.context_dim is None:
            return [AttentionBlock(dim, c.heads(dim), c.norm_groups, c.norm_eps)]
        if c.text_dim is not None:
            only_cross = bool(c.only_cross_attention) and all(c.only_cross_attention or ())
            args = (dim, c.heads(dim), c.norm_groups, c.norm_eps, c.context_dim, only_cross)
            return [TextAttentionBlock(*args)]
        crosses = bool(c.only_cross_attention) and level is not None and c.only_cross_attention[level]
        args = (dim, c.heads(dim), depth, c.context_dim, c.linear_projections, c.norm_groups, crosses)
        return [SpatialTransformer(*args)]

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | Context | None,
        vector: Tensor | None,
        time_cond: Tensor | None = None,
    ) -> tuple[Tensor, Context | None]:
        """Embedding of t and the vector for the res-blocks, in x's dtype; context for the attentions. Raises ValueError
        where inputs do not fit."""
        c = self.config
        context = Context(context) if isinstance(context, Tensor) else context
        width = c.text_dim or c.context_dim
        if c.attends and (context is None or context.tokens.shape[-1] != width):
            given = "none" if context is None else f"one of shape {tuple(context.tokens.shape)}"
            raise ValueError(f"the context should be (B, T, {width}), and the one given is {given}")
        if (vector is None) != (c.vector_dim is None and c.num_classes is None and not c.level_embedding):
            given = "none" if vector is None else f"one of shape {tuple(vector.shape)}"
            wanted = (
                f"vector_dim {c.vector_dim}, num_classes {c.num_classes}, level_embedding {c.level_embedding}"
            )
            raise ValueError(f"the network is built with {wanted}, and the vector given is {given}")
        waves = timestep_embedding(t, c.channels, sin_first=c.sin_first, freq_shift=c.freq_shift)
        waves = waves.to(x.dtype)
        if time_cond is not None:
            if c.time_cond_dim is None or time_cond.shape[-1] != c.time_cond_dim:
                shape = tuple(time_cond.shape)
                raise ValueError(
                    f"time_cond has shape {shape}; the network takes time_cond_dim {c.time_cond_dim}"
                )
            waves = waves + self.time_cond_proj(time_cond.to(x.dtype))
        emb = self.time_embed(waves)
        if vector is not None and c.level_embedding:
            emb = emb + self.aug_proj(timestep_embedding(vector, c.channels).to(x.dtype))
        elif vector is not None:
            emb = emb + self.label_emb(vector)
        if c.text_dim is not None and context is not None:
            emb = emb + context.through(self.encoder_pooling).tokens
            context = context.through(self.encoder_proj)
        return emb, context


@dataclass
class Kept:
    """The input of the last `shallow` output blocks from below, to be taken instead of being computed again
    (DeepCache, Ma et al. 2024). It belongs to one shape of x."""

    shallow: int = 1
    features: Tensor | None = None  # none: the next call computes them


class UNet(UNetEncoder):
    """Predicts eps, v or x0 of a noised picture or latent (Ho et al. 2020; Rombach et al. 2022; Podell et al. 2023)."""

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__(config)
        c, skips = config, list(self.skips)
        dim = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, (mult, depths) in reversed(list(enumerate(zip(c.channel_mult, c.outputs, strict=True)))):
            for i, depth in enumerate(depths):
                dim_out = mult * c.channels
                block = [self.res(dim + skips.pop(), dim_out), *self.attention(dim_out, depth, level)]
                dim = dim_out
                if level > 0 and i == c.res_blocks[level]:
                    block.append(self.res(dim, dim, "up") if c.resblock_updown else Upsample(dim))
                self.output_blocks.append(Block(*block))

        self.out = nn.Sequential(
            *normed(c.norm_groups, dim, c.norm_eps, c.act),
            zero_init(Conv2d(dim, c.out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | Context | None = None,
        vector: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        kept: Kept | None = None,
        time_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict from a noised latent.

        x: (B, in_channels, H, W), unit variance. t: (B,) timesteps in [0, 999], whole or between.
        context: (B, T, context_dim or text_dim), as a Context where it comes again. vector: (B, vector_dim), or (B,) class
        indices or noise levels. control: residuals of a ControlNet, one for each input block in order and a last one for
        the middle block.
        kept: where features for later calls are left, or those of an earlier one are taken.
        time_cond: (B, time_cond_dim), such as the embedded guidance scale of LCM; None adds nothing to the time.
        Returns (B, out_channels, H, W). Raises ValueError where context or vector do not fit the config.
        """
        emb, context = self.embed(x, t, context, vector, time_cond)
        deep = None if kept is None else kept.features
        num = len(self.input_blocks) if deep is None or kept is None else kept.shallow
        skips = []
        for block in self.input_blocks[:num]:
            x = block(x, emb, context)
            skips.append(x)
        if deep is None:
            x = self.middle_block(x, emb, context)
        if control is not None:
            if len(control) != len(self.input_blocks) + 1:
                raise ValueError(
                    f"{len(control)} control residuals given, {len(self.input_blocks) + 1} wanted"
                )
            skips = [skip + residual for skip, residual in zip(skips, control[:num], strict=True)]
            x = x + control[-1] if deep is None else x
        for block in self.output_blocks[-num:]:
            if kept is not None and len(skips) == kept.shallow:
                x = kept.features = x if deep is None else deep
            x = torch.cat([x, skips.pop()], dim=1)
            size = (skips[-1].shape[2], skips[-1].shape[3]) if skips else None
            x = block(x, emb, context, size)
        return self.out(x)
