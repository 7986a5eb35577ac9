"""A ControlNet's `config.json`: that of its U-Net's first half, and the hint's."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.controlnet import HINT_WIDTHS, ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnionConfig
from inkwash.weights.configs.schema import Json, Layout
from inkwash.weights.configs.unet import DOWN, UP, unet_config_from_json, unet_json

HINT = Layout(
    "controlnet",
    ours={"conditioning_channels": 3, "global_pool_conditions": False},
    fixed={
        "controlnet_conditioning_channel_order": "rgb",
        "conditioning_embedding_out_channels": list(HINT_WIDTHS),
    },
    free=frozenset(),
)
UNION = Layout(
    "controlnet union",
    ours={"num_control_type": 6, "num_trans_layer": 1, "num_trans_channel": 320, "num_proj_channel": 320},
    fixed={},
    free=frozenset({"num_trans_head"}),  # each token attends to itself alone
)
# of the U-Net's fields, those that a ControlNet has
SHARED = (
    "act_fn addition_embed_type addition_embed_type_num_heads addition_time_embed_dim attention_head_dim "
    "block_out_channels class_embed_type cross_attention_dim down_block_types downsample_padding encoder_hid_dim "
    "encoder_hid_dim_type flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor "
    "mid_block_type norm_eps norm_num_groups num_attention_heads num_class_embeds only_cross_attention "
    "projection_class_embeddings_input_dim resnet_time_scale_shift transformer_layers_per_block upcast_attention "
    "use_linear_projection"
).split()


def controlnet_json(config: ControlNetConfig) -> Json:
    """`config.json` of diffusers' ControlNetModel."""
    read = {field: value for field, value in unet_json(config.unet).items() if field in SHARED}
    hint = {
        "conditioning_channels": config.hint_channels,
        "global_pool_conditions": config.global_pool,
        **HINT.fixed,
    }
    return read | hint | {"_class_name": "ControlNetModel"}


def controlnet_config_from_json(data: Mapping[str, Any]) -> ControlNetConfig:
    """The config of a ControlNet's `config.json`. Raises ModelFileError naming the field that is not covered."""
    hint = {field: value for field, value in data.items() if field in {**HINT.ours, **HINT.fixed}}
    if isinstance(hint.get("conditioning_embedding_out_channels"), tuple):
        hint["conditioning_embedding_out_channels"] = list(hint["conditioning_embedding_out_channels"])
    read = {field: value for field, value in data.items() if field not in hint}
    downs = read.get("down_block_types")
    if isinstance(downs, list | tuple):
        read["up_block_types"] = [UP[kind == DOWN[1]] for kind in reversed(downs)]
    read["out_channels"] = read.get("in_channels")
    known = HINT.read(hint)
    pooled = known["global_pool_conditions"] is True
    return ControlNetConfig(unet_config_from_json(read), HINT.whole(known, "conditioning_channels"), pooled)


def controlnet_union_json(config: ControlNetUnionConfig) -> Json:
    """`config.json` of diffusers' ControlNetUnionModel."""
    dim = config.unet.channels
    base = controlnet_json(config)
    base.pop("mid_block_type", None)  # of which it has one alone
    return base | {
        "_class_name": "ControlNetUnionModel",
        "num_control_type": config.num_types,
        "num_trans_channel": dim,
        "num_trans_head": 8,
        "num_trans_layer": config.num_layers,
        "num_proj_channel": dim,
    }


def controlnet_union_config_from_json(data: Mapping[str, Any]) -> ControlNetUnionConfig:
    """The config of a union's `config.json`. Raises ModelFileError naming the field that is not covered."""
    own = {field: value for field, value in data.items() if field in {*UNION.ours, *UNION.free}}
    base = controlnet_config_from_json({field: value for field, value in data.items() if field not in own})
    read = UNION.read(own)
    for field in ("num_trans_channel", "num_proj_channel"):
        if read[field] != base.unet.channels:
            raise UNION.refuse(field, read[field], f"{base.unet.channels}, the network's width")
    return ControlNetUnionConfig(
        base.unet,
        base.hint_channels,
        base.global_pool,
        UNION.whole(read, "num_control_type"),
        UNION.whole(read, "num_trans_layer"),
    )
