"""`vae/config.json`, of a KL autoencoder or a tiny one."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.tiny import TinyAutoencoderConfig
from inkwash.weights.layouts.layout import Json, Layout, sized

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

TINY_AUTOENCODER = Layout(
    "tiny autoencoder",
    ours={"in_channels": 3, "latent_channels": 4, "encoder_block_out_channels": [64, 64, 64, 64]},
    fixed={
        "act_fn": "relu",
        "num_encoder_blocks": [1, 3, 3, 3],
        "num_decoder_blocks": [3, 3, 3, 1],
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsampling_scaling_factor": 2,
    },
    free=frozenset(
        {
            "block_out_channels",
            "decoder_block_out_channels",
            "out_channels",
            "force_upcast",
            "latent_magnitude",
            "latent_shift",
            "upsample_fn",
        }
    ),
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


def tiny_autoencoder_json(config: TinyAutoencoderConfig) -> Json:
    """`config.json` of diffusers' AutoencoderTiny."""
    widths = [config.channels] * 4
    return {
        "_class_name": "AutoencoderTiny",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        **TINY_AUTOENCODER.fixed,
    }


def tiny_autoencoder_config_from_json(data: Mapping[str, Any]) -> TinyAutoencoderConfig:
    """The config of a tiny autoencoder's `config.json`. Raises ModelFileError naming the field that is not covered."""
    layout, read = TINY_AUTOENCODER, TINY_AUTOENCODER.read(data)
    widths = layout.each(read, "encoder_block_out_channels", 4)
    if len(set(widths)) > 1:
        raise layout.refuse("encoder_block_out_channels", list(widths), "one number of channels")
    return TinyAutoencoderConfig(
        layout.whole(read, "in_channels"), widths[0], layout.whole(read, "latent_channels")
    )
