"""Tables from this library's names to other dialects. Ours are LDM's and SGM's, and for CLIP Hugging Face's.

Index arithmetic, with L res-blocks a level: input_blocks.n is level (n-1) // (L+1), layer (n-1) % (L+1), and
layer L is the downsampling; output_blocks.n is level n // (L+1) counted from the last, layer n % (L+1).
"""

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights.keymap import Move, dense, transposed, unstacked

RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def res_block(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in RES_BLOCK.items()}


def unet_table(config: UNetConfig) -> dict[str, str]:
    """Names of `UNet` -> those of diffusers' UNet2DConditionModel."""
    per_level, last = config.num_res_blocks + 1, len(config.channel_mult) - 1
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    if config.vector_dim is not None:
        table |= {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
    elif config.num_classes is not None:
        table["label_emb"] = "class_embedding"

    for level, depth in enumerate(config.transformer_depth):
        down, first = f"down_blocks.{level}", 1 + level * per_level
        for i in range(config.num_res_blocks):
            table |= res_block(f"input_blocks.{first + i}.0", f"{down}.resnets.{i}")
            if depth:
                table[f"input_blocks.{first + i}.1"] = f"{down}.attentions.{i}"
        if level < last:
            table[f"input_blocks.{first + config.num_res_blocks}.0.op"] = f"{down}.downsamplers.0.conv"

    table |= res_block("middle_block.0", "mid_block.resnets.0")
    if config.transformer_depth_middle:
        table["middle_block.1"] = "mid_block.attentions.0"
    if config.transformer_depth_middle is not None:
        third = 2 if config.transformer_depth_middle else 1
        table |= res_block(f"middle_block.{third}", "mid_block.resnets.1")

    for level, depths in enumerate(reversed(config.outputs)):  # from the last
        up, first = f"up_blocks.{level}", level * per_level
        for i, depth in enumerate(depths):
            table |= res_block(f"output_blocks.{first + i}.0", f"{up}.resnets.{i}")
            if depth:
                table[f"output_blocks.{first + i}.1"] = f"{up}.attentions.{i}"
        if level < last:
            after = 2 if depths[-1] else 1
            table[f"output_blocks.{first + per_level - 1}.{after}.conv"] = f"{up}.upsamplers.0.conv"
    return table


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OLD_ATTENTION = ("query", "key", "value", "proj_attn")  # diffusers before 0.17, and most published SD1 files


def autoencoder_table(
    config: AutoencoderConfig, attention: tuple[str, str, str, str] = ATTENTION
) -> dict[str, str | Move]:
    """Names of `AutoencoderKL` -> those of diffusers' AutoencoderKL.

    attention: their names of query, key, value and output, ATTENTION or OLD_ATTENTION.
    """
    levels = len(config.channel_mult)
    table: dict[str, str | Move] = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        table |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        blocks = {f"{side}.mid.block_{i + 1}": f"{side}.mid_block.resnets.{i}" for i in range(2)}
        way = "down" if side == "encoder" else "up"
        for level in range(levels):
            # both count the encoder's levels from the finest; they count the decoder's from the coarsest
            ours = f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
            theirs = f"{side}.{way}_blocks.{level}"
            blocks[f"{ours}.block.{{}}"] = f"{theirs}.resnets.{{}}"
            table[f"{ours}.{way}sample"] = f"{theirs}.{way}samplers.0"
        table |= blocks
        table |= {f"{ours}.nin_shortcut": f"{theirs}.conv_shortcut" for ours, theirs in blocks.items()}
        if config.middle_attention:
            ours, theirs = f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
            table[f"{ours}.norm"] = f"{theirs}.group_norm"
            names = zip(("q", "k", "v", "proj_out"), attention, strict=True)
            table |= {f"{ours}.{a}": dense(f"{theirs}.{b}") for a, b in names}
    return table


# Hugging Face's own two forms: with the tower's name in front, as here, and bare, as transformers 5 writes a
# CLIPTextModel or CLIPVisionModel. position_ids are a constant that older files hold.
CLIP_TEXT_BARE: dict[str, str | None] = {
    "embeddings.position_ids": None,
    **{f"text_model.{name}": name for name in ("embeddings", "encoder", "final_layer_norm")},
}
CLIP_VISION_BARE: dict[str, str | None] = {
    "embeddings.position_ids": None,
    **{f"vision_model.{name}": name for name in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")},
}

_LAYER = "text_model.encoder.layers.{}"
_QKV = [f"{_LAYER}.self_attn.{name}_proj" for name in "qkv"]

# OpenCLIP's text tower -> ours: the text encoder of SD2 and the second one of SDXL, in single files. This one
# reads from left to right, since one tensor there is three here.
OPEN_CLIP_TEXT: dict[str, str | Move | None] = {
    "attn_mask": None,
    "logit_scale": None,
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": transposed("text_projection.weight"),
    "transformer.resblocks.{}.ln_1": f"{_LAYER}.layer_norm1",
    "transformer.resblocks.{}.ln_2": f"{_LAYER}.layer_norm2",
    "transformer.resblocks.{}.mlp.c_fc": f"{_LAYER}.mlp.fc1",
    "transformer.resblocks.{}.mlp.c_proj": f"{_LAYER}.mlp.fc2",
    "transformer.resblocks.{}.attn.out_proj": f"{_LAYER}.self_attn.out_proj",
    "transformer.resblocks.{}.attn.in_proj_weight": unstacked(*(f"{name}.weight" for name in _QKV)),
    "transformer.resblocks.{}.attn.in_proj_bias": unstacked(*(f"{name}.bias" for name in _QKV)),
}
