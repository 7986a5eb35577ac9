"""`unet/config.json` of a network that sees no context: diffusers' UNet2DModel."""

from collections.abc import Mapping, Sequence
from typing import Any

from inkwash.models.unet import UNetConfig
from inkwash.weights.configs.schema import Json, Layout, sized

PIXEL_UNET = Layout(
    "unet",
    ours={
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": ...,
        "down_block_types": ...,
        "up_block_types": ...,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "add_attention": True,
        "norm_num_groups": 32,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "resnet_time_scale_shift": "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "num_class_embeds": None,
    },
    fixed={
        "act_fn": "silu",
        "center_input_sample": False,
        "class_embed_type": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2D",
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
    },
    free=frozenset({"sample_size", "dropout", "num_train_timesteps"}),
)
DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
SHIFTS = ("default", "scale_shift")
RESAMPLING = ("conv", "resnet")


def pixel_unet_json(config: UNetConfig, sample_size: int | None = None) -> Json:
    """`unet/config.json` of a config without a context; `sample_size` is the size that diffusers' pipelines draw.

    Raises ModelFileError for what diffusers' UNet2DModel cannot be: a middle of one block, attention in a level's
    output blocks alone, a first multiple other than 1, or as many heads on levels of different widths.
    """
    c, layout = config, PIXEL_UNET
    attends = [depth > 0 for depth in c.transformer_depth]
    if c.transformer_depth_middle is None:
        raise layout.refuse("transformer_depth_middle", None, "0 or 1")
    if c.transformer_depth_output is not None:
        raise layout.refuse("transformer_depth_output", c.transformer_depth_output, "as the levels have it")
    if c.vector_dim is not None:
        raise layout.refuse("vector_dim", c.vector_dim, "null")
    plain = 2 if c.resblock_updown else 0
    return {
        "_class_name": "UNet2DModel",
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "block_out_channels": layout.widths(c.channels, c.channel_mult),
        "down_block_types": [DOWN[1 if attending else plain] for attending in attends],
        "up_block_types": [UP[1 if attending else plain] for attending in reversed(attends)],
        "layers_per_block": c.num_res_blocks,
        "attention_head_dim": head_dim(c, attends),
        "add_attention": bool(c.transformer_depth_middle),
        "norm_num_groups": c.norm_groups,
        "attn_norm_num_groups": c.norm_groups,
        "norm_eps": c.norm_eps,
        "downsample_padding": c.downsample_padding,
        "downsample_type": RESAMPLING[c.resblock_updown],
        "upsample_type": RESAMPLING[c.resblock_updown],
        "resnet_time_scale_shift": SHIFTS[c.scale_shift_norm],
        "flip_sin_to_cos": not c.sin_first,
        "freq_shift": c.freq_shift,
        "num_class_embeds": c.num_classes,
        **layout.fixed,
        **sized(sample_size),
    }


def head_dim(c: UNetConfig, attends: list[bool]) -> int | None:
    """Channels of a head, null for one head of all. Diffusers has one figure for all levels."""
    if c.num_heads is None or c.num_heads == 1:
        return c.head_dim
    middle = bool(c.transformer_depth_middle)
    used = {
        mult
        for mult, here in zip(c.channel_mult, [*attends[:-1], attends[-1] or middle], strict=True)
        if here
    }
    if len(used) > 1:
        raise PIXEL_UNET.refuse("num_heads", c.num_heads, "1, or head_dim, for levels of different widths")
    return c.channels * max(used, default=1) // c.num_heads


def pixel_unet_config_from_json(data: Mapping[str, Any]) -> UNetConfig:
    """The config of a UNet2DModel's `config.json`. Raises ModelFileError naming the field that is not covered."""
    layout, read = PIXEL_UNET, PIXEL_UNET.read(data)
    channels, channel_mult = layout.multiples(read)
    levels = len(channel_mult)
    downs, ups = read["down_block_types"], read["up_block_types"]
    if not isinstance(downs, list | tuple) or len(downs) != levels or any(kind not in DOWN for kind in downs):
        raise layout.refuse("down_block_types", downs, f"a list of {levels} of {', '.join(DOWN)}")
    mirrored = [UP[DOWN.index(kind)] for kind in reversed(downs)]
    if not isinstance(ups, list | tuple) or list(ups) != mirrored:
        raise layout.refuse("up_block_types", ups, f"the mirror of down_block_types, {mirrored}")
    attends = [kind == DOWN[1] for kind in downs]

    resizes = by_res_blocks(read, downs, mirrored)
    for field in ("add_attention", "flip_sin_to_cos"):
        if type(read[field]) is not bool:
            raise layout.refuse(field, read[field], "true or false")
    for field in ("downsample_padding", "freq_shift"):
        if type(read[field]) is not int or read[field] not in (0, 1):
            raise layout.refuse(field, read[field], "0 or 1")
    eps = read["norm_eps"]
    if type(eps) is not float or not 0 < eps < 1:
        raise layout.refuse("norm_eps", eps, "a number between 0 and 1")
    if read["resnet_time_scale_shift"] not in SHIFTS:
        raise layout.refuse("resnet_time_scale_shift", read["resnet_time_scale_shift"], " or ".join(SHIFTS))
    shifts = read["resnet_time_scale_shift"] == SHIFTS[1]
    groups, own = layout.whole(read, "norm_num_groups"), read["attn_norm_num_groups"]
    if read["add_attention"] and own != groups and (own is not None or shifts):
        raise layout.refuse("attn_norm_num_groups", own, f"norm_num_groups, {groups}")
    per_head = read["attention_head_dim"]
    if per_head is not None:
        widths = [channels * mult for mult in channel_mult]
        here = [width for width, attending in zip(widths, attends, strict=True) if attending]
        here += widths[-1:] if read["add_attention"] else []
        if any(width % layout.whole(read, "attention_head_dim") for width in here):
            raise layout.refuse("attention_head_dim", per_head, f"a divisor of {here} channels")
    classes = read["num_class_embeds"]
    return UNetConfig(
        in_channels=layout.whole(read, "in_channels"),
        out_channels=layout.whole(read, "out_channels"),
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.same(read, "layers_per_block", levels),
        transformer_depth=tuple(map(int, attends)),
        transformer_depth_middle=int(read["add_attention"]),
        context_dim=None,
        num_heads=1 if per_head is None else None,
        head_dim=per_head,
        num_classes=classes if classes is None else layout.whole(read, "num_class_embeds"),
        norm_groups=groups,
        scale_shift_norm=shifts,
        resblock_updown=resizes,
        sin_first=not read["flip_sin_to_cos"],
        freq_shift=read["freq_shift"],
        downsample_padding=read["downsample_padding"],
        norm_eps=eps,
    )


def by_res_blocks(read: Json, downs: Sequence[str], ups: Sequence[str]) -> bool:
    """Return True if ResBlocks, not convolutions, halve and double the size. Raises ModelFileError where blocks differ."""
    # the last level keeps its size, and so says nothing
    resizing = {
        read["downsample_type"] if kind == DOWN[1] else RESAMPLING[kind == DOWN[2]] for kind in downs[:-1]
    }
    resizing |= {read["upsample_type"] if kind == UP[1] else RESAMPLING[kind == UP[2]] for kind in ups[:-1]}
    if len(resizing) > 1 or not resizing <= set(RESAMPLING):
        raise PIXEL_UNET.refuse(
            "downsample_type", read["downsample_type"], "as its blocks and upsample_type are"
        )
    return resizing == {RESAMPLING[1]}
