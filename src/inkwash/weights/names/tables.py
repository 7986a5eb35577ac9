"""Tables from this library's names to other dialects. Ours are LDM's and SGM's, and for CLIP Hugging Face's.

Index arithmetic, with L res-blocks a level: input_blocks.n is level (n-1) // (L+1), layer (n-1) % (L+1), and
layer L is the downsampling; output_blocks.n is level n // (L+1) counted from the last, layer n % (L+1).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models import tiny
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.controlnet import HINT_WIDTHS, ControlNetConfig
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.names.keymap import Move, dense, heads_apart, translate, transposed, unstacked

RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def res_block(ours: str, theirs: str) -> dict[str, str | Move]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in RES_BLOCK.items()}


def attention(config: UNetConfig, level: int, ours: str, theirs: str) -> dict[str, str | Move]:
    """The names in what follows a res-block: a transformer, or an AttentionBlock in a network without a context."""
    if config.context_dim is not None and config.text_dim is None:
        return {ours: theirs}
    heads = config.heads(config.channels * config.channel_mult[level])
    *qkv, out = (f"{theirs}.{name}" for name in OLD_ATTENTION.values())
    if config.text_dim is not None:
        return {
            f"{ours}.norm": f"{theirs}.group_norm",
            f"{ours}.norm_encoder": f"{theirs}.norm_cross",
            f"{ours}.qkv": heads_apart(heads, *(qkv[:1] if config.only_cross_attention else qkv)),
            f"{ours}.encoder_kv": heads_apart(heads, f"{theirs}.add_k_proj", f"{theirs}.add_v_proj"),
            f"{ours}.proj_out": dense(out, axes=1),
        }
    return {
        f"{ours}.norm": f"{theirs}.group_norm",
        f"{ours}.qkv": heads_apart(heads, *qkv),
        f"{ours}.proj_out": dense(out, axes=1),
    }


def unet_table(config: UNetConfig) -> dict[str, str | Move]:
    """Names of `UNet` -> those of diffusers' UNet2DConditionModel, or of its UNet2DModel for one without a context."""
    last, first = len(config.channel_mult) - 1, 0
    table = encoder_table(config) | {"out.0": "conv_norm_out", "out.2": "conv_out"}
    for level, depths in enumerate(reversed(config.outputs)):  # from the last
        up = f"up_blocks.{level}"
        for i, depth in enumerate(depths):
            table |= res_block(f"output_blocks.{first + i}.0", f"{up}.resnets.{i}")
            if depth:
                ours, theirs = f"output_blocks.{first + i}.1", f"{up}.attentions.{i}"
                table |= attention(config, last - level, ours, theirs)
        if level < last:
            after = 2 if depths[-1] else 1
            ours, theirs = f"output_blocks.{first + len(depths) - 1}.{after}", f"{up}.upsamplers.0"
            table |= res_block(ours, theirs) if config.resblock_updown else {f"{ours}.conv": f"{theirs}.conv"}
        first += len(depths)
    return table


def encoder_table(config: UNetConfig) -> dict[str, str | Move]:
    """The table of names of the U-Net's encoder, which ControlNets share."""
    last, first = len(config.channel_mult) - 1, 1
    table: dict[str, str | Move] = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
    }
    if config.time_cond_dim is not None:
        table["time_cond_proj"] = "time_embedding.cond_proj"
    if config.vector_dim is not None:
        theirs = "class_embedding" if config.image_vector else "add_embedding"
        table |= {"label_emb.0.0": f"{theirs}.linear_1", "label_emb.0.2": f"{theirs}.linear_2"}
    elif config.num_classes is not None:
        table["label_emb"] = "class_embedding"
    elif config.level_embedding:
        table |= {"aug_proj.0": "class_embedding.linear_1", "aug_proj.2": "class_embedding.linear_2"}
    if config.text_dim is not None:
        names = dict(enumerate(("norm1", "pool", "proj", "norm2")))
        table |= {f"encoder_pooling.{i}": f"add_embedding.{name}" for i, name in names.items()}
        table["encoder_proj"] = "encoder_hid_proj"

    for level, (depth, num) in enumerate(zip(config.transformer_depth, config.res_blocks, strict=True)):
        down = f"down_blocks.{level}"
        for i in range(num):
            table |= res_block(f"input_blocks.{first + i}.0", f"{down}.resnets.{i}")
            if depth:
                table |= attention(config, level, f"input_blocks.{first + i}.1", f"{down}.attentions.{i}")
        if level < last:
            ours, theirs = f"input_blocks.{first + num}.0", f"{down}.downsamplers.0"
            table |= res_block(ours, theirs) if config.resblock_updown else {f"{ours}.op": f"{theirs}.conv"}
        first += num + 1

    table |= res_block("middle_block.0", "mid_block.resnets.0")
    if config.transformer_depth_middle:
        table |= attention(config, last, "middle_block.1", "mid_block.attentions.0")
    if config.transformer_depth_middle is not None:
        third = 2 if config.transformer_depth_middle else 1
        table |= res_block(f"middle_block.{third}", "mid_block.resnets.1")
    return table


def controlnet_table(config: ControlNetConfig) -> dict[str, str | Move]:
    """Names of `ControlNet` -> those of diffusers' ControlNetModel."""
    embedding = ["conv_in", *(f"blocks.{i}" for i in range(2 * len(HINT_WIDTHS) - 2)), "conv_out"]
    table = encoder_table(config.unet) | {"middle_block_out.0": "controlnet_mid_block"}
    table |= {
        f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(embedding)
    }
    return table | {"zero_convs.{}.0": "controlnet_down_blocks.{}"}


def controlnet_union_table(config: ControlNetConfig) -> dict[str, str | Move]:
    """Names of `ControlNetUnion` -> those of diffusers' ControlNetUnionModel, which has its own parts' names from there."""
    same = ("task_embedding", "transformer_layes", "spatial_ch_projs", "control_add_embedding")
    return controlnet_table(config) | {name: name for name in same}


def tiny_autoencoder_table() -> dict[str, str]:
    """Names of `TinyAutoencoder` -> those of diffusers' AutoencoderTiny, whose decoder has no layer that clamps."""
    both = {f"decoder.{i + 1}": f"decoder.layers.{i}" for i in range(len(tiny.DECODER) - 1)}
    return both | {"encoder.{}": "encoder.layers.{}"}


def bert_table(config: BERTConfig) -> dict[str, str]:
    """Names of `BERT` -> those of diffusers' LDMBertModel."""
    table = {
        "transformer.token_emb": "model.embed_tokens",
        "transformer.pos_emb.emb": "model.embed_positions",
        "transformer.norm": "model.layer_norm",
    }
    for i in range(config.num_layers):
        attention, mlp = (f"transformer.attn_layers.layers.{n}" for n in (2 * i, 2 * i + 1))
        theirs = f"model.layers.{i}"
        table |= {
            f"{attention}.0": f"{theirs}.self_attn_layer_norm",
            f"{mlp}.0": f"{theirs}.final_layer_norm",
        }
        table |= {
            f"{attention}.1.to_{name}": f"{theirs}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")
        }
        table |= {f"{mlp}.1.net.0.0": f"{theirs}.fc1", f"{mlp}.1.net.2": f"{theirs}.fc2"}
    return table


def one_head(ours: str, theirs: str) -> dict[str, str | Move]:
    """The table of names of an autoencoder's attention, which has one head."""
    names = zip(("q", "k", "v", "proj_out"), OLD_ATTENTION.values(), strict=True)
    table: dict[str, str | Move] = {f"{ours}.{a}": dense(f"{theirs}.{b}") for a, b in names}
    return table | {f"{ours}.norm": f"{theirs}.group_norm"}


def autoencoder_table(config: AutoencoderConfig) -> dict[str, str | Move]:
    """Names of `AutoencoderKL` or `AutoencoderVQ` -> those of diffusers' AutoencoderKL or VQModel."""
    levels = len(config.channel_mult)
    table: dict[str, str | Move] = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    if config.codebook_size:
        table["quantize.embedding"] = "quantize.embedding"
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
            table |= one_head(f"{ours}.attn.{{}}", f"{theirs}.attentions.{{}}")
        table |= blocks
        table |= {f"{ours}.nin_shortcut": f"{theirs}.conv_shortcut" for ours, theirs in blocks.items()}
        if config.middle_attention:
            table |= one_head(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    return table


# attention over pixels as diffusers named it before 0.17, in most published SD1 files, and since
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)$")


def modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's or U-Net's tensors under the names that diffusers gives them today."""

    def name(old: re.Match[str]) -> str:
        return f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"

    return {OLD_NAME.sub(name, key): value for key, value in tensors.items()}


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


def open_clip_layers(theirs: str, ours: str) -> dict[str, str | Move | None]:
    """A tower's layers, from OpenCLIP's names to ours."""
    qkv = [f"{ours}.self_attn.{name}_proj" for name in "qkv"]
    return {
        f"{theirs}.ln_1": f"{ours}.layer_norm1",
        f"{theirs}.ln_2": f"{ours}.layer_norm2",
        f"{theirs}.mlp.c_fc": f"{ours}.mlp.fc1",
        f"{theirs}.mlp.c_proj": f"{ours}.mlp.fc2",
        f"{theirs}.attn.out_proj": f"{ours}.self_attn.out_proj",
        f"{theirs}.attn.in_proj_weight": unstacked(*(f"{name}.weight" for name in qkv)),
        f"{theirs}.attn.in_proj_bias": unstacked(*(f"{name}.bias" for name in qkv)),
    }


# OpenCLIP's towers -> ours: the text encoder of SD2 and the second one of SDXL, in single files, and the vision tower
# beside them. These read from left to right, since one tensor there is three here.
OPEN_CLIP_TEXT: dict[str, str | Move | None] = {
    "attn_mask": None,
    "logit_scale": None,
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": transposed("text_projection.weight"),
    **open_clip_layers("transformer.resblocks.{}", "text_model.encoder.layers.{}"),
}
OPEN_CLIP_VISION: dict[str, str | Move | None] = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1": "vision_model.embeddings.patch_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
    "proj": transposed("visual_projection.weight"),
    **open_clip_layers("transformer.resblocks.{}", "vision_model.encoder.layers.{}"),
}


def unet_paths(unet: UNet) -> dict[str, str]:
    """Paths of a U-Net's modules -> those of diffusers.

    Raises ModelFileError where one of ours is several of theirs.
    """
    tensors = unet.state_dict()
    theirs = translate(tensors, unet_table(unet.config))
    if len(theirs) != len(tensors):
        raise ModelFileError(
            "LoRAs and their kin are not covered with U-Nets of pixels, whose attention has queries, keys and values in one"
        )
    pairs = zip(tensors, theirs, strict=True)
    return {a.removesuffix(".weight"): b.removesuffix(".weight") for a, b in pairs if a.endswith(".weight")}
