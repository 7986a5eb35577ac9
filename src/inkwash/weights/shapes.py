"""Configs read from the shapes of a checkpoint's tensors, under this library's names.

Some figures leave no trace in a shape. Heads: here 8 where projections are convolutions or self-attention is left out
(SD1, the x4 upscaler), else 64 channels each; `without_unseen_fields` gives a config without them, by which a family
is known that says better. Groups of a norm: 32, as in every published checkpoint.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.clip import CLIPTextConfig, CLIPVisionConfig
from inkwash.models.conditions import ClassConfig, PictureConfig, SemanticConfig
from inkwash.models.controlnet import ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnionConfig
from inkwash.models.t5 import T5Config
from inkwash.models.tiny import DECODER, ENCODER, TinyAutoencoderConfig
from inkwash.models.unet import UNetConfig

Shapes = Mapping[str, Sequence[int]]
VISION_HEADS = {1280: 16, 1664: 16}  # OpenCLIP's H and bigG; elsewhere a head has 64 channels
VISION = "vision."  # before the names of a PictureEmbedder's CLIP tower
PICTURE_VECTORS = (1536, 2048)  # twice as wide as CLIP's vectors: Stable unCLIP's
TIME_COND = "time_cond_proj.weight"
TRANSFORMER = re.compile(
    r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\.(?:transformer_blocks\.(\d+)\.|qkv\.)"
)


def of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def at(shapes: Shapes, key: str, ndim: int | None = None) -> Sequence[int]:
    """The shape of a tensor that must be there. Raises ModelFileError where it is not, or has other axes."""
    if key not in shapes:
        raise ModelFileError(f"{key} is missing")
    if (ndim is not None and len(shapes[key]) != ndim) or 0 in shapes[key]:
        raise ModelFileError(
            f"{key} has shape {tuple(shapes[key])}; {ndim or 'some'} axes are wanted, none empty"
        )
    return shapes[key]


def count(shapes: Shapes, prefix: str) -> int:
    """Number of the numbers 0, 1, ... that follow a prefix ending in a dot."""
    found = {key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)}
    numbers = {int(name) for name in found if name.isdecimal() and len(name) < 4}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def multiples(widths: Sequence[int], channels: int) -> tuple[int, ...]:
    if any(width % channels for width in widths):
        raise ModelFileError(f"the levels are {list(widths)} wide, not multiples of {channels}")
    return tuple(width // channels for width in widths)


def without_unseen_fields(config: UNetConfig) -> UNetConfig:
    """The config with fixed values in all fields that shapes don't determine."""
    return replace(
        config,
        num_heads=1,
        head_dim=None,
        image_vector=False,
        sin_first=False,
        freq_shift=0,
        downsample_padding=1,
        norm_eps=1e-5,
    )


def unet_config(shapes: Shapes) -> UNetConfig:
    """A U-Net's config, from its shapes. Raises ModelFileError naming the tensor that is missing or does not fit."""
    config = encoder_config(shapes)
    depths_of, levels, blocks = block_depths(shapes), len(config.channel_mult), config.res_blocks[0]
    num_outputs = count(shapes, "output_blocks.")
    if num_outputs != levels * (blocks + 1):
        raise ModelFileError(f"there are {num_outputs} output_blocks; {levels * (blocks + 1)} are wanted")
    order = [depths_of.get(f"output_blocks.{n}", 0) for n in range(num_outputs)]
    chunks = [tuple(order[i : i + blocks + 1]) for i in range(0, num_outputs, blocks + 1)]
    outputs = tuple(reversed(chunks))
    plain = outputs == config.outputs
    return replace(
        config,
        out_channels=at(shapes, "out.2.weight", 4)[0],
        transformer_depth_output=None if plain else outputs,
    )


def controlnet_config(shapes: Shapes) -> ControlNetConfig:
    """A ControlNet's config, from its shapes. Raises ModelFileError naming the tensor that is missing or does not fit."""
    return ControlNetConfig(encoder_config(shapes), at(shapes, "input_hint_block.0.weight", 4)[1])


def controlnet_union_config(shapes: Shapes) -> ControlNetUnionConfig:
    """A union's config, from its shapes. Raises ModelFileError naming the tensor that is missing or does not fit."""
    return ControlNetUnionConfig(
        encoder_config(shapes),
        at(shapes, "input_hint_block.0.weight", 4)[1],
        num_types=at(shapes, "task_embedding", 2)[0],
        num_layers=count(shapes, "transformer_layes."),
    )


def encoder_config(shapes: Shapes) -> UNetConfig:
    """The config of the part that a U-Net and its ControlNets share."""
    channels, in_channels = at(shapes, "input_blocks.0.0.weight", 4)[:2]
    depths_of, widths, levels = block_depths(shapes), [], [[]]
    resizing = resizing_blocks(shapes)
    for n in range(1, count(shapes, "input_blocks.")):
        if f"input_blocks.{n}.0.op.weight" in shapes or n in resizing:
            levels.append([])
            continue
        if not levels[-1]:
            widths.append(at(shapes, f"input_blocks.{n}.0.in_layers.2.weight", 4)[0])
        levels[-1].append(depths_of.get(f"input_blocks.{n}", 0))
    blocks = len(levels[0])
    if not blocks or any(len(set(level)) != 1 or len(level) != blocks for level in levels):
        raise ModelFileError(
            f"the levels' transformer depths are {levels}: each level is wanted with as many blocks"
        )
    depth = tuple(level[0] for level in levels)

    middle = depths_of.get("middle_block", 0) if count(shapes, "middle_block.") > 1 else None
    crossing = {key: at(shapes, key, 2)[1] for key in shapes if key.endswith("attn2.to_k.weight")}
    if len(set(crossing.values())) > 1:
        raise ModelFileError(
            f"attn2.to_k takes contexts of different widths: {sorted(set(crossing.values()))}"
        )
    only_cross = tuple(
        bool(crossing) and depth[level] > 0 and crosses(shapes, f"input_blocks.{level * (blocks + 1) + 1}.1")
        for level in range(len(levels))
    )
    projections = [len(shape) for key, shape in shapes.items() if key.endswith("proj_in.weight")]
    linear = 2 in projections
    eight = not linear or any(only_cross)
    embedded = at(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    label = "label_emb.0.0.weight"
    vector_dim = at(shapes, label, 2)[1] if label in shapes else None
    return UNetConfig(
        in_channels=in_channels,
        out_channels=in_channels,
        channels=channels,
        channel_mult=multiples(widths, channels),
        num_res_blocks=blocks,
        transformer_depth=depth,
        transformer_depth_middle=middle,
        context_dim=next(iter(crossing.values()), None),
        num_heads=8 if eight else None,
        head_dim=None if eight else 64,
        linear_projections=linear,
        only_cross_attention=only_cross if any(only_cross) else None,
        vector_dim=vector_dim,
        image_vector=vector_dim in PICTURE_VECTORS,
        num_classes=at(shapes, "label_emb.weight", 2)[0] if "label_emb.weight" in shapes else None,
        time_cond_dim=at(shapes, TIME_COND, 2)[1] if TIME_COND in shapes else None,
        scale_shift_norm=embedded == 2 * at(shapes, "input_blocks.1.0.out_layers.3.weight", 4)[0],
        resblock_updown=bool(resizing),
    )


def diffusers_structure(shapes: Shapes) -> UNetConfig:
    """The part of a config that the table of names depends on, of a U-Net or ControlNet under diffusers' names."""
    levels, blocks = count(shapes, "down_blocks."), count(shapes, "down_blocks.0.resnets.")

    def depth(block: str, layer: int = 0) -> int:
        return count(shapes, f"{block}.attentions.{layer}.transformer_blocks.")

    pictured = "class_embedding.linear_1.weight" in shapes
    ups = [f"up_blocks.{level}" for level in reversed(range(levels))]
    outputs = tuple(tuple(depth(up, layer) for layer in range(blocks + 1)) for up in ups)
    return UNetConfig(
        channel_mult=(1,) * levels,
        num_res_blocks=blocks,
        transformer_depth=tuple(depth(f"down_blocks.{level}") for level in range(levels)),
        transformer_depth_middle=depth("mid_block") if "mid_block.resnets.1.norm1.weight" in shapes else None,
        transformer_depth_output=outputs,
        time_cond_dim=1 if "time_embedding.cond_proj.weight" in shapes else None,
        vector_dim=1 if "add_embedding.linear_1.weight" in shapes or pictured else None,
        image_vector=pictured,
        num_classes=1 if "class_embedding.weight" in shapes else None,
    )


def resizing_blocks(shapes: Shapes) -> set[int]:
    """The input blocks that are res-blocks which halve the size; their shapes are those of any other.

    Output blocks that end in a second res-block double it, one for each level but one, and levels have as many blocks.
    """
    num = count(shapes, "input_blocks.")
    doubling = {
        key.split(".")[1] for key in shapes if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.", key)
    }
    return set(range(0, num, max(1, num // (len(doubling) + 1)))) - {0} if doubling else set()


def crosses(shapes: Shapes, transformer: str) -> bool:
    """Return True if a transformer's first attention, too, is to the context."""
    dim_out, dim_in = at(shapes, f"{transformer}.transformer_blocks.0.attn1.to_k.weight", 2)
    return dim_in != dim_out


def block_depths(shapes: Shapes) -> dict[str, int]:
    """Transformer depth of each block that has a transformer, by its name, such as input_blocks.4."""
    found: dict[str, set[str]] = {}
    for key in shapes:
        if match := TRANSFORMER.match(key):
            found.setdefault(match[1], set()).add(match[2] or "0")
    return {block: len(numbers) for block, numbers in found.items()}


def autoencoder_config(shapes: Shapes, scale_factor: float | None = None) -> AutoencoderConfig:
    """The scale factor is not in the file; by default Stable Diffusion 1's, and 1 with a codebook.

    Raises ModelFileError naming the tensor that is missing or does not fit.
    """
    channels, in_channels = at(shapes, "encoder.conv_in.weight", 4)[:2]
    levels = count(shapes, "encoder.down.")
    widths = [at(shapes, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    codes = "quantize.embedding.weight"
    return AutoencoderConfig(
        in_channels=in_channels,
        channels=channels,
        channel_mult=multiples(widths, channels),
        num_res_blocks=count(shapes, "encoder.down.0.block."),
        latent_channels=at(shapes, "post_quant_conv.weight", 4)[0],
        scale_factor=scale_factor or (1.0 if codes in shapes else 0.18215),
        middle_attention="encoder.mid.attn_1.q.weight" in shapes,
        attention=tuple(i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes),
        codebook_size=at(shapes, codes, 2)[0] if codes in shapes else None,
    )


def clip_text_config(shapes: Shapes, activation: str) -> CLIPTextConfig:
    """The activation is not in the file. Raises ModelFileError naming the tensor that is missing or does not fit."""
    vocab_size, width = at(shapes, "text_model.embeddings.token_embedding.weight", 2)
    projection = shapes.get("text_projection.weight")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=count(shapes, "text_model.encoder.layers."),
        num_heads=max(1, width // 64),
        mlp_width=at(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        max_length=at(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        activation=activation,
        projection_dim=projection[0] if projection is not None else None,
        eos_token=vocab_size - 1,
    )


def t5_config(shapes: Shapes) -> T5Config:
    """A T5 encoder's config by its tensors' shapes, with the default maximum of relative distances, which no tensor shows.

    Raises ModelFileError naming the tensor that is missing or does not fit.
    """
    first = "encoder.block.0.layer."
    vocab_size, width = at(shapes, "shared.weight", 2)
    num_buckets, num_heads = at(shapes, f"{first}0.SelfAttention.relative_attention_bias.weight", 2)
    gated = f"{first}1.DenseReluDense.wi_0.weight" in shapes
    return T5Config(
        vocab_size=vocab_size,
        width=width,
        num_layers=count(shapes, "encoder.block."),
        num_heads=num_heads,
        head_dim=at(shapes, f"{first}0.SelfAttention.q.weight", 2)[0] // num_heads,
        mlp_width=at(shapes, f"{first}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight", 2)[0],
        gated=gated,
        num_buckets=num_buckets,
    )


def clip_vision_config(shapes: Shapes, activation: str) -> CLIPVisionConfig:
    """The activation is not in the file. Raises ModelFileError naming the tensor that is missing or does not fit."""
    width, _, patch_size, _ = at(shapes, "vision_model.embeddings.patch_embedding.weight", 4)
    patches = at(shapes, "vision_model.embeddings.position_embedding.weight", 2)[0] - 1
    projection = shapes.get("visual_projection.weight")
    return CLIPVisionConfig(
        width=width,
        num_layers=count(shapes, "vision_model.encoder.layers."),
        num_heads=VISION_HEADS.get(width, max(1, width // 64)),
        mlp_width=at(shapes, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        image_size=round(patches**0.5) * patch_size,
        patch_size=patch_size,
        activation=activation,
        projection_dim=projection[0] if projection is not None else None,
    )


def tiny_autoencoder_config(shapes: Shapes) -> TinyAutoencoderConfig:
    """A tiny autoencoder's config, from its shapes. Raises ModelFileError naming a tensor that's missing or does not fit."""
    encodes, decodes = (any(name.startswith(half) for name in shapes) for half in ("encoder.", "decoder."))
    if encodes:
        channels, in_channels = at(shapes, "encoder.0.weight", 4)[:2]
        latent_channels = at(shapes, f"encoder.{len(ENCODER) - 1}.weight", 4)[0]
    else:
        channels, latent_channels = at(shapes, "decoder.1.weight", 4)[:2]
        in_channels = at(shapes, f"decoder.{len(DECODER) - 1}.weight", 4)[0]
    return TinyAutoencoderConfig(in_channels, channels, latent_channels, encodes, decodes)


def bert_config(shapes: Shapes) -> BERTConfig:
    """Heads have 64 channels, as in every published one. Raises ModelFileError naming the tensor that is missing."""
    vocab_size, width = at(shapes, "transformer.token_emb.weight", 2)
    return BERTConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=count(shapes, "transformer.attn_layers.layers.") // 2,
        max_length=at(shapes, "transformer.pos_emb.emb.weight", 2)[0],
        num_heads=max(1, at(shapes, "transformer.attn_layers.layers.0.1.to_q.weight", 2)[0] // 64),
        head_dim=min(64, shapes["transformer.attn_layers.layers.0.1.to_q.weight"][0]),
    )


def class_config(shapes: Shapes) -> ClassConfig:
    return ClassConfig(*at(shapes, "embedding.weight", 2))


def picture_config(shapes: Shapes) -> PictureConfig:
    """OpenAI's tower, 1024 wide, has another activation than OpenCLIP's."""
    tower = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    width = at(tower, "vision_model.embeddings.patch_embedding.weight", 4)[0]
    vision = clip_vision_config(tower, "quick_gelu" if width == 1024 else "gelu")
    return PictureConfig(vision, noised="mean" in shapes)


def semantic_config(shapes: Shapes) -> SemanticConfig:
    channels, num_labels = at(shapes, "channel_mapper.weight", 4)[:2]
    return SemanticConfig(num_labels, channels)
