"""`unet/config.json` of networks that see pixels and text at once: diffusers' UNet2DConditionModel of DeepFloyd IF."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.unet import UNetConfig
from inkwash.weights.configs.schema import Json, Layout, sized

IMAGEN_UNET = Layout(
    "unet",
    ours={
        "in_channels": ...,
        "out_channels": ...,
        "block_out_channels": ...,
        "down_block_types": ...,
        "up_block_types": ...,
        "layers_per_block": ...,
        "cross_attention_dim": ...,
        "attention_head_dim": ...,
        "encoder_hid_dim": ...,
        "addition_embed_type_num_heads": 64,
        "act_fn": "silu",
        "class_embed_type": None,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "norm_num_groups": 32,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
    },
    fixed={
        "addition_embed_type": "text",
        "addition_time_embed_dim": None,
        "attention_type": "default",
        "center_input_sample": False,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": "group_norm",
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_eps": 1e-5,
        "num_attention_heads": None,
        "num_class_embeds": None,
        "projection_class_embeddings_input_dim": None,
        "reverse_transformer_layers_per_block": None,
        "time_cond_proj_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    free=frozenset(
        {
            "sample_size",
            "dropout",
            "encoder_hid_dim_type",  # text_proj, which an encoder_hid_dim means
            "transformer_layers_per_block",  # there are no transformers
            "upcast_attention",
            "use_linear_projection",
        }
    ),
)
DOWN = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
UP = ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
SHIFTS = ("default", "scale_shift")
PIXELS = 3  # channels of a picture


def imagen_unet_json(config: UNetConfig, sample_size: int | None = None) -> Json:
    """`unet/config.json` of a config with text_dim. Raises ModelFileError for what diffusers has no block for."""
    c, layout = config, IMAGEN_UNET
    attends = [depth > 0 for depth in c.transformer_depth]
    for field, wanted in (("resblock_updown", True), ("transformer_depth_middle", 1), ("num_heads", None)):
        if getattr(c, field) != wanted:
            raise layout.refuse(field, getattr(c, field), repr(wanted))
    blocks = c.res_blocks
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "block_out_channels": layout.widths(c.channels, c.channel_mult),
        "down_block_types": [DOWN[here] for here in attends],
        "up_block_types": [UP[here] for here in reversed(attends)],
        "layers_per_block": blocks[0] if len(set(blocks)) == 1 else list(blocks),
        "cross_attention_dim": c.context_dim,
        "attention_head_dim": c.head_dim,
        "encoder_hid_dim": c.text_dim,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type_num_heads": c.text_heads,
        "act_fn": c.act,
        "class_embed_type": "timestep" if c.level_embedding else None,
        "mid_block_only_cross_attention": bool(c.only_cross_attention),
        "mid_block_scale_factor": c.residual_scale,
        "norm_num_groups": c.norm_groups,
        "only_cross_attention": bool(c.only_cross_attention),
        "resnet_out_scale_factor": c.residual_scale,
        "resnet_time_scale_shift": SHIFTS[c.scale_shift_norm],
        **layout.fixed,
        **sized(sample_size),
    }


def imagen_unet_config_from_json(data: Mapping[str, Any]) -> UNetConfig:
    """The config of such a `unet/config.json`. Raises ModelFileError naming the field that is not covered."""
    layout, read = IMAGEN_UNET, IMAGEN_UNET.read(data)
    channels, channel_mult = layout.multiples(read)
    levels = len(channel_mult)
    downs, ups = read["down_block_types"], read["up_block_types"]
    if not isinstance(downs, list | tuple) or len(downs) != levels or any(kind not in DOWN for kind in downs):
        raise layout.refuse("down_block_types", downs, f"a list of {levels} of {' and '.join(DOWN)}")
    attends = [kind == DOWN[1] for kind in downs]
    mirrored = [UP[here] for here in reversed(attends)]
    if not isinstance(ups, list | tuple) or list(ups) != mirrored:
        raise layout.refuse("up_block_types", ups, f"the mirror of down_block_types, {mirrored}")
    if read["out_channels"] not in (PIXELS, 2 * PIXELS):
        raise layout.refuse("out_channels", read["out_channels"], f"{PIXELS}, or twice that with variances")
    crosses = read["only_cross_attention"]
    if type(crosses) is not bool or read["mid_block_only_cross_attention"] not in (None, crosses):
        raise layout.refuse("only_cross_attention", crosses, "true or false, for the middle too")
    scale = read["resnet_out_scale_factor"]
    if type(scale) not in (int, float) or not 0 < scale < 100 or read["mid_block_scale_factor"] != scale:
        raise layout.refuse("resnet_out_scale_factor", scale, "a number above 0, that of the middle too")
    act = read["act_fn"]
    if act not in ("silu", "gelu"):
        raise layout.refuse("act_fn", act, "silu or gelu")
    check_time_embedding(read, channels)
    if read["class_embed_type"] not in (None, "timestep"):
        raise layout.refuse("class_embed_type", read["class_embed_type"], "null or timestep")
    if read["resnet_time_scale_shift"] not in SHIFTS:
        raise layout.refuse("resnet_time_scale_shift", read["resnet_time_scale_shift"], " or ".join(SHIFTS))
    head_dim, text_dim = layout.whole(read, "attention_head_dim"), layout.whole(read, "encoder_hid_dim")
    heads = layout.whole(read, "addition_embed_type_num_heads")
    used = [channels * mult for mult, here in zip(channel_mult, [*attends[:-1], True], strict=True) if here]
    if any(width % head_dim for width in used):
        raise layout.refuse("attention_head_dim", head_dim, f"a divisor of {used} channels")
    if text_dim % heads:
        raise layout.refuse("addition_embed_type_num_heads", heads, f"a divisor of {text_dim}")
    return UNetConfig(
        in_channels=layout.whole(read, "in_channels"),
        out_channels=read["out_channels"],
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.each(read, "layers_per_block", levels),
        transformer_depth=tuple(map(int, attends)),
        context_dim=layout.same(read, "cross_attention_dim", levels),
        num_heads=None,
        head_dim=head_dim,
        only_cross_attention=(True,) * levels if crosses else None,
        norm_groups=layout.whole(read, "norm_num_groups"),
        scale_shift_norm=read["resnet_time_scale_shift"] == SHIFTS[1],
        resblock_updown=True,
        act=act,
        text_dim=text_dim,
        text_heads=heads,
        level_embedding=read["class_embed_type"] == "timestep",
        learned_variance=read["out_channels"] == 2 * PIXELS,
        residual_scale=float(scale),
    )


def check_time_embedding(read: Json, channels: int) -> None:
    """Check that the time embedding has the blocks' width and activation; raise ModelFileError otherwise."""
    layout, act = IMAGEN_UNET, read["act_fn"]
    # the time's activation may be in front of all blocks, or in each of them: it is one function
    if (read["time_embedding_act_fn"], read["resnet_skip_time_act"]) not in ((None, False), (act, True)):
        raise layout.refuse(
            "time_embedding_act_fn", read["time_embedding_act_fn"], f"{act}, and skipped in blocks"
        )
    if read["time_embedding_dim"] not in (None, 4 * channels):
        raise layout.refuse("time_embedding_dim", read["time_embedding_dim"], f"{4 * channels}")
