"""`unet/config.json` of diffusers' UNet2DConditionModel; that of its UNet2DModel is in `pixel_unet`."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.unet import UNetConfig
from inkwash.weights.configs.imagen_unet import imagen_unet_config_from_json, imagen_unet_json
from inkwash.weights.configs.pixel_unet import pixel_unet_config_from_json, pixel_unet_json
from inkwash.weights.configs.schema import Json, Layout, sized

UNET = Layout(
    "unet",
    ours={
        "in_channels": ...,
        "out_channels": ...,
        "block_out_channels": ...,
        "down_block_types": ...,
        "up_block_types": ...,
        "layers_per_block": ...,
        "cross_attention_dim": ...,
        "attention_head_dim": 8,
        "transformer_layers_per_block": 1,
        "reverse_transformer_layers_per_block": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "only_cross_attention": False,
        "use_linear_projection": False,
        "norm_num_groups": 32,
        "class_embed_type": None,
        "num_class_embeds": None,
        "time_cond_proj_dim": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    fixed={
        "act_fn": "silu",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "num_attention_heads": None,
        "resnet_out_scale_factor": 1,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    free=frozenset(
        {
            "sample_size",
            "dropout",
            "upcast_attention",
            "addition_embed_type_num_heads",
            "mid_block_only_cross_attention",  # diffusers hands it to no middle that is covered here
        }
    ),
)
DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
MIDDLE = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")
SIZE_EMBED_DIM = 256  # SDXL embeds each of its sizes and crops in so many channels


def unet_json(config: UNetConfig, sample_size: int | None = None) -> Json:
    """`unet/config.json` of a config; `sample_size` is the latent size that diffusers' pipelines default to.

    A config without a context is that of a UNet2DModel, and one with a text_dim DeepFloyd IF's. Raises ModelFileError for
    what diffusers' UNet2DConditionModel cannot be: two blocks without attention in the middle, a depth there that differs
    from that of an attending last level, a first multiple other than 1, heads that do not divide the channels, or what
    only a UNet2DModel has.
    """
    if config.context_dim is None:
        return pixel_unet_json(config, sample_size)
    if config.text_dim is not None:
        return imagen_unet_json(config, sample_size)
    c, layout = config, UNET
    check_writable_unet(c)
    widths = layout.widths(c.channels, c.channel_mult)
    attends = [depth > 0 for depth in c.transformer_depth]
    middle = middle_depth(c)
    depths = [depth or 1 for depth in c.transformer_depth[:-1]] + [middle]
    reverse = c.transformer_depth_output and [
        list(outputs) if any(outputs) else 1 for outputs in reversed(c.transformer_depth_output)
    ]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": c.in_channels,
        "out_channels": c.out_channels,
        "block_out_channels": widths,
        "down_block_types": [DOWN[attending] for attending in attends],
        "up_block_types": [UP[attending] for attending in reversed(attends)],
        "layers_per_block": c.num_res_blocks,
        "cross_attention_dim": c.context_dim,
        # a number of heads in spite of the field's name, one for all levels or one for each
        "attention_head_dim": c.num_heads or [max(width // (c.head_dim or 1), 1) for width in widths],
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "reverse_transformer_layers_per_block": reverse or None,
        "mid_block_type": MIDDLE[c.transformer_depth_middle is not None],
        "only_cross_attention": list(c.only_cross_attention) if c.only_cross_attention else False,
        "use_linear_projection": c.linear_projections,
        "norm_num_groups": c.norm_groups,
        "time_cond_proj_dim": c.time_cond_dim,
        **conditions_json(c),
        **layout.fixed,
        **sized(sample_size),
    }


def middle_depth(c: UNetConfig) -> int:
    """Transformers in the middle: the config's, else as many as the last level has, and at least one."""
    return c.transformer_depth[-1] or 1 if c.transformer_depth_middle is None else c.transformer_depth_middle


def check_writable_unet(c: UNetConfig) -> None:
    """Check that diffusers' UNet2DConditionModel can express a config; raise ModelFileError otherwise."""
    layout, plain = UNET, UNetConfig()
    for field in (
        "scale_shift_norm",
        "resblock_updown",
        "sin_first",
        "freq_shift",
        "downsample_padding",
        "norm_eps",
    ):
        if getattr(c, field) != getattr(plain, field):
            raise layout.refuse(field, getattr(c, field), f"{getattr(plain, field)!r} beside a context")
    last, middle = c.transformer_depth[-1], middle_depth(c)
    if not middle or last not in (0, middle):
        wanted = f"{last}, the last level's" if last else "at least 1"
        raise layout.refuse("transformer_depth_middle", middle, wanted)
    widths = layout.widths(c.channels, c.channel_mult)
    attends = [depth > 0 for depth in c.transformer_depth]
    divisor = c.num_heads or c.head_dim or 1
    for width, attending in zip(widths, [*attends[:-1], True], strict=True):  # the middle has the last width
        if attending and width % divisor:
            field = "num_heads" if c.num_heads else "head_dim"
            raise layout.refuse(field, divisor, f"a divisor of {width} channels")


def conditions_json(c: UNetConfig) -> Json:
    """The fields of a `unet/config.json` about conditions that are added to the time embedding."""
    if c.image_vector:
        return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": c.vector_dim}
    if c.vector_dim is not None:
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_EMBED_DIM,
            "projection_class_embeddings_input_dim": c.vector_dim,
        }
    return {} if c.num_classes is None else {"num_class_embeds": c.num_classes}


def unet_config_from_json(data: Mapping[str, Any]) -> UNetConfig:
    """The config of a `unet/config.json`. Raises ModelFileError naming the field that is not covered."""
    if isinstance(data, Mapping) and (data.get("_class_name") == "UNet2DModel" or "add_attention" in data):
        return pixel_unet_config_from_json(data)
    if isinstance(data, Mapping) and data.get("addition_embed_type") == "text":
        return imagen_unet_config_from_json(data)
    layout, read = UNET, UNET.read(data)
    channels, channel_mult = layout.multiples(read)
    levels = len(channel_mult)
    widths = [channels * mult for mult in channel_mult]
    downs, ups = read["down_block_types"], read["up_block_types"]
    if not isinstance(downs, list | tuple) or len(downs) != levels or any(kind not in DOWN for kind in downs):
        raise layout.refuse("down_block_types", downs, f"a list of {levels} of {' and '.join(DOWN)}")
    attends = [kind == DOWN[1] for kind in downs]
    mirrored = [UP[attending] for attending in reversed(attends)]
    if not isinstance(ups, list | tuple) or list(ups) != mirrored:
        raise layout.refuse("up_block_types", ups, f"the mirror of down_block_types, {mirrored}")
    depths, outputs = unet_depths(read, attends)
    if read["mid_block_type"] not in MIDDLE:
        raise layout.refuse("mid_block_type", read["mid_block_type"], " or ".join(MIDDLE))
    crosses = unet_crosses(read, attends)

    # (channels, heads) wherever there is attention; the middle has the last level's
    heads_by_level = layout.each(read, "attention_head_dim", levels)
    used = [pair for *pair, here in zip(widths, heads_by_level, [*attends[:-1], True], strict=True) if here]
    shared = type(read["attention_head_dim"]) is int or len({width / heads for width, heads in used}) > 1
    if any(width % heads for width, heads in used) or (shared and len({heads for _, heads in used}) > 1):
        wanted = f"one number of heads, or of channels a head, for {[width for width, _ in used]} channels"
        raise layout.refuse("attention_head_dim", read["attention_head_dim"], wanted)

    vector_dim, pictured, num_classes = unet_vector(read)
    time_cond = read["time_cond_proj_dim"]
    if time_cond is not None:
        time_cond = layout.whole(read, "time_cond_proj_dim")
    if type(read["use_linear_projection"]) is not bool:
        raise layout.refuse("use_linear_projection", read["use_linear_projection"], "true or false")
    return UNetConfig(
        in_channels=layout.whole(read, "in_channels"),
        out_channels=layout.whole(read, "out_channels"),
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.same(read, "layers_per_block", levels),
        transformer_depth=tuple(depth * attending for depth, attending in zip(depths, attends, strict=True)),
        transformer_depth_middle=depths[-1] if read["mid_block_type"] == MIDDLE[True] else None,
        transformer_depth_output=outputs,
        only_cross_attention=tuple(crosses) if any(crosses) else None,
        context_dim=layout.same(read, "cross_attention_dim", levels),
        num_heads=used[0][1] if shared else None,
        head_dim=None if shared else used[0][0] // used[0][1],
        linear_projections=read["use_linear_projection"],
        vector_dim=vector_dim,
        image_vector=pictured,
        num_classes=num_classes,
        time_cond_dim=time_cond,
        norm_groups=layout.whole(read, "norm_num_groups"),
    )


def unet_crosses(read: Json, attends: list[bool]) -> list[bool]:
    """For each level, True if its attention is to the context alone. Raises ModelFileError for an invalid value."""
    layout, levels = UNET, len(attends)
    crosses = read["only_cross_attention"]
    crosses = [crosses] * levels if type(crosses) is bool else crosses
    if not isinstance(crosses, list | tuple) or [type(value) for value in crosses] != [bool] * levels:
        raise layout.refuse("only_cross_attention", crosses, f"true, false or a list of {levels} of them")
    if read["only_cross_attention"] is True:
        raise layout.refuse("only_cross_attention", True, "false or a list, which leaves the middle as it is")
    return [crossing and here for crossing, here in zip(crosses, attends, strict=True)]


def unet_vector(read: Json) -> tuple[int | None, bool, int | None]:
    """The vector's width, whether it is a picture's, and the number of classes. Raises ModelFileError for other values."""
    layout = UNET
    added, vector_dim = read["addition_embed_type"], None
    if added not in (None, "text_time"):
        raise layout.refuse("addition_embed_type", added, "null or text_time")
    pictured = read["class_embed_type"] == "projection"
    if (pictured == bool(added) and pictured) or read["class_embed_type"] not in (None, "projection"):
        raise layout.refuse(
            "class_embed_type", read["class_embed_type"], "null, or projection without text_time"
        )
    if pictured:
        vector_dim = layout.whole(read, "projection_class_embeddings_input_dim")
    if added:
        vector_dim = layout.whole(read, "projection_class_embeddings_input_dim")
        if read["addition_time_embed_dim"] != SIZE_EMBED_DIM:
            given = read["addition_time_embed_dim"]
            raise layout.refuse("addition_time_embed_dim", given, str(SIZE_EMBED_DIM))
    num_classes = read["num_class_embeds"]
    if num_classes is not None and layout.whole(read, "num_class_embeds") and vector_dim:
        raise layout.refuse("num_class_embeds", num_classes, "null beside text_time or projection")
    return vector_dim, pictured, num_classes


def unet_depths(
    read: Json, attends: list[bool]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...] | None]:
    """Transformer depth of each level, and of each of its output blocks where a config gives those too.

    A level's depth may be a list, one for each of its blocks; here all of a level's input blocks are alike.
    """
    layout, levels = UNET, len(attends)
    given = read["transformer_layers_per_block"]
    if isinstance(given, list | tuple) and len(given) == levels:
        # a plain level's entry says nothing, and published configs have 0 there
        given = [
            entry[0] if isinstance(entry, list) and entry and len(set(entry)) == 1 else entry
            for entry in given
        ]
        given = [
            entry if here or i == levels - 1 else 1
            for i, (entry, here) in enumerate(zip(given, attends, strict=True))
        ]
    depths = layout.each({"transformer_layers_per_block": given}, "transformer_layers_per_block", levels)
    field = "reverse_transformer_layers_per_block"
    if read[field] is None:
        return depths, None
    blocks = layout.same(read, "layers_per_block", levels) + 1
    if not isinstance(read[field], list | tuple) or len(read[field]) != levels:
        raise layout.refuse(field, read[field], f"null or a list of {levels}")
    outputs = []
    for entry, here in zip(reversed(read[field]), attends, strict=True):
        outputs.append(layout.each({field: entry}, field, blocks) if here else (0,) * blocks)
    return depths, tuple(outputs)
