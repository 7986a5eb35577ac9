"""`vae/config.json`, and `vqvae/config.json`, of a KL, VQ or tiny autoencoder."""

from collections.abc import Mapping
from typing import Any

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.tiny import TinyAutoencoderConfig
from inkwash.weights.configs.schema import Json, Layout, sized

OURS: Json = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": ...,
    "down_block_types": ...,
    "up_block_types": ...,
    "layers_per_block": ...,
    "latent_channels": ...,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
KL = Layout(
    "vae",
    ours={**OURS, "scaling_factor": 0.18215, "latents_mean": None, "latents_std": None},
    fixed={
        "act_fn": "silu",
        "shift_factor": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    free=frozenset({"sample_size", "force_upcast"}),
)
VQ = Layout(
    "vqvae",
    # latent diffusion's own are not scaled, and their files say nothing of it
    ours={**OURS, "scaling_factor": 1.0, "num_vq_embeddings": 256, "vq_embed_dim": None},
    fixed={"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False},
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
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def autoencoder_json(config: AutoencoderConfig, sample_size: int | None = None) -> Json:
    """`config.json` of an AutoencoderKL or a VQModel; `sample_size` is the picture size that diffusers tiles beyond.

    Raises ModelFileError for a first multiple other than 1, which diffusers' classes cannot have.
    """
    c, layout = config, VQ if config.codebook_size else KL
    attends = [level in c.attention for level in range(len(c.channel_mult))]
    codes = {"num_vq_embeddings": c.codebook_size, "vq_embed_dim": c.latent_channels}
    latents = {
        "latents_mean": c.latents_mean and list(c.latents_mean),
        "latents_std": c.latents_std and list(c.latents_std),
    }
    return {
        "_class_name": "VQModel" if c.codebook_size else "AutoencoderKL",
        "in_channels": c.in_channels,
        "out_channels": c.in_channels,
        "block_out_channels": layout.widths(c.channels, c.channel_mult),
        "down_block_types": [DOWN[attending] for attending in attends],
        "up_block_types": [UP[attending] for attending in reversed(attends)],
        "layers_per_block": c.num_res_blocks,
        "latent_channels": c.latent_channels,
        "norm_num_groups": c.norm_groups,
        "scaling_factor": c.scale_factor,
        "mid_block_add_attention": c.middle_attention,
        **(codes if c.codebook_size else latents),
        **layout.fixed,
        **sized(sample_size),
    }


def autoencoder_config_from_json(data: Mapping[str, Any]) -> AutoencoderConfig:
    """The config of a `config.json`. Raises ModelFileError naming the field that is not covered."""
    quantizes = isinstance(data, Mapping) and (
        data.get("_class_name") == "VQModel" or "num_vq_embeddings" in data
    )
    layout = VQ if quantizes else KL
    read = layout.read(data)
    channels, channel_mult = layout.multiples(read)
    downs, ups = read["down_block_types"], read["up_block_types"]
    levels = len(channel_mult)
    if not isinstance(downs, list | tuple) or len(downs) != levels or any(kind not in DOWN for kind in downs):
        raise layout.refuse("down_block_types", downs, f"{' or '.join(DOWN)} for each of {levels} levels")
    attends = [kind == DOWN[1] for kind in downs]
    mirrored = [UP[attending] for attending in reversed(attends)]
    if not isinstance(ups, list | tuple) or list(ups) != mirrored:
        raise layout.refuse("up_block_types", ups, f"the mirror of down_block_types, {mirrored}")
    if read["out_channels"] != read["in_channels"]:
        raise layout.refuse("out_channels", read["out_channels"], f"in_channels, {read['in_channels']!r}")
    scale = read["scaling_factor"]
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise layout.refuse("scaling_factor", scale, "a number above 0")
    if type(read["mid_block_add_attention"]) is not bool:
        raise layout.refuse("mid_block_add_attention", read["mid_block_add_attention"], "true or false")
    latent_channels = layout.whole(read, "latent_channels")
    if quantizes and read["vq_embed_dim"] not in (None, latent_channels):
        raise layout.refuse("vq_embed_dim", read["vq_embed_dim"], f"latent_channels, {latent_channels}")
    return AutoencoderConfig(
        in_channels=layout.whole(read, "in_channels"),
        channels=channels,
        channel_mult=channel_mult,
        num_res_blocks=layout.same(read, "layers_per_block", levels),
        latent_channels=latent_channels,
        scale_factor=scale,
        latents_mean=channel_values(read, "latents_mean"),
        latents_std=channel_values(read, "latents_std"),
        norm_groups=layout.whole(read, "norm_num_groups"),
        middle_attention=read["mid_block_add_attention"],
        attention=tuple(level for level, attending in enumerate(attends) if attending),
        codebook_size=layout.whole(read, "num_vq_embeddings") if quantizes else None,
    )


def channel_values(read: Json, field: str) -> tuple[float, ...] | None:
    """A number for each latent channel, or none."""
    value, num = read.get(field), read["latent_channels"]
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != num or {*map(type, value)} - {int, float}:
        raise KL.refuse(field, value, f"null or {num} numbers")
    return tuple(map(float, value))


def tiny_autoencoder_json(config: TinyAutoencoderConfig) -> Json:
    """`config.json` of diffusers' AutoencoderTiny. Raises ModelFileError for an encoder or a decoder alone."""
    if not (config.encodes and config.decodes):
        half = "encoder" if config.encodes else "decoder"
        raise ModelFileError(
            f"diffusers has no layout for a tiny autoencoder's {half} alone; use --layout single"
        )
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
