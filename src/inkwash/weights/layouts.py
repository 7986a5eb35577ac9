"""Configs to and from the `config.json` files of a diffusers folder, in diffusers' and transformers' fields.

Writing gives every field that sets the architecture. Reading takes no field on trust: each one either sets
ours, or must have the one value that ours stands for (a missing field has it), or cannot change the network.
Anything else raises ModelFileError with the field's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import ACTIVATIONS, CLIPTextConfig, CLIPVisionConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights.files import ModelFileError

Json = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One kind of config.json."""

    kind: str
    ours: dict[str, Any]  # fields that set our config, with the value of a missing one (... must be there)
    fixed: dict[str, Any]  # fields that must have this value
    free: frozenset[str]  # fields that do not change the network

    def read(self, data: Mapping[str, Any]) -> Json:
        """The fields that set our config, checked to be the only ones that matter."""
        if not isinstance(data, Mapping):
            raise ModelFileError(f"{self.kind} config: {type(data).__name__} given, an object wanted")
        known = [*self.ours, *self.fixed, *self.free]
        for field, value in data.items():
            if field not in known and not field.startswith("_"):
                near = get_close_matches(field[:200], known, n=3)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise ModelFileError(f"{self.kind} config: unknown field {field[:200]!r}{hint}")
            if field in self.fixed and value != self.fixed[field]:
                raise self.refuse(field, value, repr(self.fixed[field]))
        read = self.ours | {field: data[field] for field in self.ours if field in data}
        for field, value in read.items():
            if value is ...:
                raise ModelFileError(f"{self.kind} config: {field} is missing")
        return read

    def refuse(self, field: str, value: object, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.kind} config: {field} is {repr(value)[:200]}, and not {wanted}")

    def whole(self, read: Json, field: str) -> int:
        """A whole number of at least 1."""
        value = read[field]
        if type(value) is not int or value < 1:
            raise self.refuse(field, value, "a whole number of at least 1")
        return value

    def each(self, read: Json, field: str, count: int | None = None) -> tuple[int, ...]:
        """Whole numbers, `count` of them; with a count one number may stand for all."""
        value = read[field]
        if count is not None and type(value) is int:
            value = [value] * count
        if not isinstance(value, list | tuple) or not value or count not in (None, len(value)):
            raise self.refuse(field, value, f"a list of {count or 'some'} whole numbers")
        return tuple(self.whole({field: number}, field) for number in value)

    def same(self, read: Json, field: str, count: int) -> int:
        """One whole number for all levels, written once or `count` times."""
        values = self.each(read, field, count)
        if len(set(values)) > 1:
            raise self.refuse(field, read[field], "one value for all levels")
        return values[0]

    def multiples(self, read: Json) -> tuple[int, tuple[int, ...]]:
        """Channels of the first level, and every level's as a multiple of it."""
        widths = self.each(read, "block_out_channels")
        if any(width % widths[0] for width in widths):
            raise self.refuse("block_out_channels", list(widths), f"multiples of the first, {widths[0]}")
        return widths[0], tuple(width // widths[0] for width in widths)

    def widths(self, channels: int, channel_mult: tuple[int, ...]) -> list[int]:
        if channel_mult[0] != 1:
            raise self.refuse("channel_mult", channel_mult, "a first multiple of 1")
        return [channels * mult for mult in channel_mult]


def sized(sample_size: int | None) -> Json:
    return {} if sample_size is None else {"sample_size": sample_size}


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
        "use_linear_projection": False,
        "norm_num_groups": 32,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    fixed={
        "act_fn": "silu",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
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
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "num_attention_heads": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    free=frozenset({"sample_size", "dropout", "upcast_attention", "addition_embed_type_num_heads"}),
)
DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
SIZE_EMBED_DIM = 256  # SDXL embeds each of its sizes and crops in so many channels


def unet_json(config: UNetConfig, sample_size: int | None = None) -> Json:
    """`unet/config.json` of a config; `sample_size` is the latent size that diffusers' pipelines default to.

    Raises ModelFileError for what diffusers' UNet2DConditionModel cannot be: no attention in the middle, a
    depth there that differs from that of an attending last level, a first multiple other than 1, or heads
    that do not divide the channels.
    """
    c, layout = config, UNET
    widths = layout.widths(c.channels, c.channel_mult)
    *_, last = c.transformer_depth
    middle = c.transformer_depth_middle
    if not middle or last not in (0, middle):
        wanted = f"{last}, the last level's" if last else "at least 1"
        raise layout.refuse("transformer_depth_middle", middle, wanted)
    attends = [depth > 0 for depth in c.transformer_depth]
    divisor = c.num_heads or c.head_dim or 1
    for width, attending in zip(widths, [*attends[:-1], True], strict=True):  # the middle has the last width
        if attending and width % divisor:
            field = "num_heads" if c.num_heads else "head_dim"
            raise layout.refuse(field, divisor, f"a divisor of {width} channels")
    depths = [depth or 1 for depth in c.transformer_depth[:-1]] + [middle]
    conditions: Json = {}
    if c.vector_dim is not None:
        conditions = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_EMBED_DIM,
            "projection_class_embeddings_input_dim": c.vector_dim,
        }
    elif c.num_classes is not None:
        conditions = {"num_class_embeds": c.num_classes}
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
        "use_linear_projection": c.linear_projections,
        "norm_num_groups": c.norm_groups,
        **conditions,
        **layout.fixed,
        **sized(sample_size),
    }


def unet_config_from_json(data: Mapping[str, Any]) -> UNetConfig:
    """The config of a `unet/config.json`. Raises ModelFileError naming the field that is not covered."""
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
    depths = layout.each(read, "transformer_layers_per_block", levels)

    # (channels, heads) wherever there is attention; the middle has the last level's
    heads_by_level = layout.each(read, "attention_head_dim", levels)
    used = [pair for *pair, here in zip(widths, heads_by_level, [*attends[:-1], True], strict=True) if here]
    shared = type(read["attention_head_dim"]) is int or len({width / heads for width, heads in used}) > 1
    if any(width % heads for width, heads in used) or (shared and len({heads for _, heads in used}) > 1):
        wanted = f"one number of heads, or of channels a head, for {[width for width, _ in used]} channels"
        raise layout.refuse("attention_head_dim", read["attention_head_dim"], wanted)

    added, vector_dim = read["addition_embed_type"], None
    if added not in (None, "text_time"):
        raise layout.refuse("addition_embed_type", added, "null or text_time")
    if added:
        vector_dim = layout.whole(read, "projection_class_embeddings_input_dim")
        if read["addition_time_embed_dim"] != SIZE_EMBED_DIM:
            given = read["addition_time_embed_dim"]
            raise layout.refuse("addition_time_embed_dim", given, str(SIZE_EMBED_DIM))
    num_classes = read["num_class_embeds"]
    if num_classes is not None and layout.whole(read, "num_class_embeds") and added:
        raise layout.refuse("num_class_embeds", num_classes, "null beside text_time")
    if type(read["use_linear_projection"]) is not bool:
        raise layout.refuse("use_linear_projection", read["use_linear_projection"], "true or false")
    return UNetConfig(
        in_channels=layout.whole(read, "in_channels"),
        out_channels=layout.whole(read, "out_channels"),
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.same(read, "layers_per_block", levels),
        transformer_depth=tuple(depth * attending for depth, attending in zip(depths, attends, strict=True)),
        transformer_depth_middle=depths[-1],
        context_dim=layout.same(read, "cross_attention_dim", levels),
        num_heads=used[0][1] if shared else None,
        head_dim=None if shared else used[0][0] // used[0][1],
        linear_projections=read["use_linear_projection"],
        vector_dim=vector_dim,
        num_classes=num_classes,
        norm_groups=layout.whole(read, "norm_num_groups"),
    )


AUTOENCODER = Layout(
    "vae",
    ours={
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": ...,
        "down_block_types": ...,
        "up_block_types": ...,
        "layers_per_block": ...,
        "latent_channels": ...,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
        "mid_block_add_attention": True,
    },
    fixed={
        "act_fn": "silu",
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    free=frozenset({"sample_size", "force_upcast"}),
)


def autoencoder_json(config: AutoencoderConfig, sample_size: int | None = None) -> Json:
    """`vae/config.json` of a config; `sample_size` is the picture size that diffusers tiles beyond.

    Raises ModelFileError for a first multiple other than 1, which diffusers' AutoencoderKL cannot have.
    """
    c, levels = config, len(config.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": c.in_channels,
        "out_channels": c.in_channels,
        "block_out_channels": AUTOENCODER.widths(c.channels, c.channel_mult),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": c.num_res_blocks,
        "latent_channels": c.latent_channels,
        "norm_num_groups": c.norm_groups,
        "scaling_factor": c.scale_factor,
        "mid_block_add_attention": c.middle_attention,
        **AUTOENCODER.fixed,
        **sized(sample_size),
    }


def autoencoder_config_from_json(data: Mapping[str, Any]) -> AutoencoderConfig:
    """The config of a `vae/config.json`. Raises ModelFileError naming the field that is not covered."""
    layout, read = AUTOENCODER, AUTOENCODER.read(data)
    channels, channel_mult = layout.multiples(read)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if not isinstance(read[field], list | tuple) or list(read[field]) != [kind] * len(channel_mult):
            raise layout.refuse(field, read[field], f"{kind} for each of {len(channel_mult)} levels")
    if read["out_channels"] != read["in_channels"]:
        raise layout.refuse("out_channels", read["out_channels"], f"in_channels, {read['in_channels']!r}")
    scale = read["scaling_factor"]
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise layout.refuse("scaling_factor", scale, "a number above 0")
    if type(read["mid_block_add_attention"]) is not bool:
        raise layout.refuse("mid_block_add_attention", read["mid_block_add_attention"], "true or false")
    return AutoencoderConfig(
        in_channels=layout.whole(read, "in_channels"),
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.same(read, "layers_per_block", len(channel_mult)),
        latent_channels=layout.whole(read, "latent_channels"),
        scale_factor=scale,
        norm_groups=layout.whole(read, "norm_num_groups"),
        middle_attention=read["mid_block_add_attention"],
    )


CLIP_FREE = frozenset(
    {
        "attention_dropout",
        "dropout",
        "dtype",
        "initializer_factor",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
    }
)
CLIP_OURS: Json = {
    "architectures": ...,
    "hidden_size": ...,
    "intermediate_size": ...,
    "num_hidden_layers": ...,
    "num_attention_heads": ...,
    "hidden_act": "quick_gelu",
    "projection_dim": None,
}
CLIP_TEXT = Layout(
    "text_encoder",
    ours={**CLIP_OURS, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    fixed={"model_type": "clip_text_model", "layer_norm_eps": 1e-5},
    free=CLIP_FREE | {"bos_token_id", "pad_token_id"},
)
CLIP_VISION = Layout(
    "image_encoder",
    ours={**CLIP_OURS, "image_size": 224, "patch_size": ...},
    fixed={"model_type": "clip_vision_model", "layer_norm_eps": 1e-5, "num_channels": 3},
    free=CLIP_FREE,
)


def clip_json(config: CLIPTextConfig | CLIPVisionConfig, layout: Layout, name: str) -> Json:
    projects = config.projection_dim is not None
    return {
        "architectures": [name + "WithProjection" * projects],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": config.activation,
        "projection_dim": config.projection_dim if projects else config.width,  # transformers wants one
        **layout.fixed,
    }


def clip_fields(layout: Layout, read: Json, name: str) -> Json:
    architectures, activation = read["architectures"], read["hidden_act"]
    if architectures not in ([name], [f"{name}WithProjection"]):
        raise layout.refuse("architectures", architectures, f"[{name!r}] or [{name + 'WithProjection'!r}]")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise layout.refuse("hidden_act", activation, " or ".join(ACTIVATIONS))
    if layout.whole(read, "hidden_size") % layout.whole(read, "num_attention_heads"):
        raise layout.refuse("num_attention_heads", read["num_attention_heads"], "a divisor of hidden_size")
    return {
        "width": read["hidden_size"],
        "mlp_width": layout.whole(read, "intermediate_size"),
        "num_layers": layout.whole(read, "num_hidden_layers"),
        "num_heads": read["num_attention_heads"],
        "activation": activation,
        # a tower without projection names a width all the same
        "projection_dim": None if architectures == [name] else layout.whole(read, "projection_dim"),
    }


def clip_text_json(config: CLIPTextConfig) -> Json:
    """`text_encoder/config.json` of a config: a CLIPTextModel, or a CLIPTextModelWithProjection.

    Raises ModelFileError for an eos_token of 2, which readers take for "the greatest id".
    """
    if config.eos_token == 2 != config.vocab_size - 1:
        raise CLIP_TEXT.refuse("eos_token", 2, "any other token")
    return clip_json(config, CLIP_TEXT, "CLIPTextModel") | {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "eos_token_id": config.eos_token,
    }


def clip_text_config_from_json(data: Mapping[str, Any]) -> CLIPTextConfig:
    """The config of a `text_encoder/config.json`. Raises ModelFileError naming the field not covered."""
    layout, read = CLIP_TEXT, CLIP_TEXT.read(data)
    vocab_size, eos = layout.whole(read, "vocab_size"), layout.whole(read, "eos_token_id")
    if eos >= vocab_size:
        raise layout.refuse("eos_token_id", eos, f"a token below vocab_size, {vocab_size}")
    return CLIPTextConfig(
        **clip_fields(layout, read, "CLIPTextModel"),
        vocab_size=vocab_size,
        max_length=layout.whole(read, "max_position_embeddings"),
        # exports of SD1's time say 2, which transformers reads as "the greatest id"
        eos_token=vocab_size - 1 if eos == 2 else eos,
    )


def clip_vision_json(config: CLIPVisionConfig) -> Json:
    """`image_encoder/config.json` of a config: a CLIPVisionModel, or a CLIPVisionModelWithProjection."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return clip_json(config, CLIP_VISION, "CLIPVisionModel") | sizes


def clip_vision_config_from_json(data: Mapping[str, Any]) -> CLIPVisionConfig:
    """The config of an `image_encoder/config.json`. Raises ModelFileError naming the field not covered."""
    layout, read = CLIP_VISION, CLIP_VISION.read(data)
    return CLIPVisionConfig(
        **clip_fields(layout, read, "CLIPVisionModel"),
        image_size=layout.whole(read, "image_size"),
        patch_size=layout.whole(read, "patch_size"),
    )
