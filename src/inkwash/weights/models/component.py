"""Networks in files of their own, in any dialect: U-Nets, ControlNets, T2I-Adapters, (tiny) autoencoders, text encoders,
CLIP's picture towers."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError, write_text
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import CLIPTextConfig, CLIPVisionConfig
from inkwash.models.controlnet import ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnionConfig
from inkwash.models.t2i_adapter import T2IAdapterConfig
from inkwash.models.t5 import T5Config
from inkwash.models.tiny import TinyAutoencoderConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights import configs, shapes
from inkwash.weights.bytes.tensor_file import TensorFile, write_tensors
from inkwash.weights.checkpoint import Component, Json
from inkwash.weights.configs.t2i_adapter import (
    t2i_adapter_config,
    t2i_adapter_config_from_json,
    t2i_adapter_json,
    t2i_adapter_structure,
    t2i_adapter_table,
)
from inkwash.weights.configs.t5 import T5_UNUSED
from inkwash.weights.models.folder_files import dumped, parsed, read_text, read_weights, write_weights
from inkwash.weights.models.single import kind_of_file
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import Table, translate
from inkwash.weights.names.wrappers import read_model_file
from inkwash.weights.shapes import Shapes

CONFIG = "config.json"
LIMIT = 10_000_000_000  # bytes of a weight file, before it is sharded


@dataclass(frozen=True)
class Kind:
    """One kind of network, and its dialects."""

    config_type: type
    config: Callable[[Shapes], Any]  # from our names and their shapes
    classes: tuple[str, ...]  # of diffusers or transformers
    json: Callable[[Any], Json]
    from_json: Callable[[Mapping[str, Any]], Any]
    table: Callable[[Any], Table]  # from our names to those of diffusers or transformers
    theirs: str  # a pattern of a name that only they have
    structure: Callable[[Shapes], Any] = lambda shapes: (
        None
    )  # of their names: the config, as far as the table asks
    prefix: str = ""  # that our names may have in front
    open_clip: tuple[str, Table] | None = (
        None  # the prefix of OpenCLIP's names, and the table from them to ours
    )
    dropped: str = "$"  # a pattern of names that are no part of the network
    their_prefix: str = ""  # that their names have in front
    stem: str = "diffusion_pytorch_model"


@dataclass(frozen=True)
class AutoencoderHalf:
    """An autoencoder's encoder or decoder alone, which takes its place beside the model's own other half."""

    side: str  # encoder or decoder
    latent_channels: int

    @property
    def quant(self) -> str:
        """The layer between this half and the latents."""
        return "quant_conv." if self.side == "encoder" else "post_quant_conv."

    def holds(self, name: str) -> bool:
        """Return True if a tensor of a whole autoencoder belongs to this half."""
        return name.startswith((f"{self.side}.", self.quant))


def autoencoder_config(names: Shapes) -> AutoencoderConfig | AutoencoderHalf:
    """A whole autoencoder's config from our names and their shapes, or which half there is."""
    sides = [side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in names]
    if len(sides) != 1:
        return shapes.autoencoder_config(names)
    if sides == ["encoder"]:
        return AutoencoderHalf("encoder", shapes.at(names, "quant_conv.weight", 4)[0] // 2)
    return AutoencoderHalf("decoder", shapes.at(names, "post_quant_conv.weight", 4)[0])


def autoencoder_structure(names: Shapes) -> AutoencoderConfig:
    levels = shapes.count(names, "encoder.down_blocks.") or shapes.count(names, "decoder.up_blocks.")
    attends = any(".mid_block.attentions." in name for name in names)
    codes = 1 if "quantize.embedding.weight" in names else None
    return AutoencoderConfig(channel_mult=(1,) * levels, middle_attention=attends, codebook_size=codes)


def clip_text_config(names: Shapes) -> CLIPTextConfig:
    width = shapes.at(names, "text_model.embeddings.token_embedding.weight", 2)[1]
    return shapes.clip_text_config(names, "quick_gelu" if width == 768 else "gelu")


def clip_vision_config(names: Shapes) -> CLIPVisionConfig:
    width = shapes.at(names, "vision_model.embeddings.patch_embedding.weight", 4)[0]
    return shapes.clip_vision_config(names, "quick_gelu" if width == 1024 else "gelu")


KINDS = {
    "unet": Kind(
        UNetConfig,
        shapes.unet_config,
        ("UNet2DConditionModel", "UNet2DModel"),
        configs.unet_json,
        configs.unet_config_from_json,
        tables.unet_table,
        r"down_blocks\.",
        shapes.diffusers_structure,
        "model.diffusion_model.",
    ),
    "controlnet": Kind(
        ControlNetConfig,
        shapes.controlnet_config,
        ("ControlNetModel",),
        configs.controlnet_json,
        configs.controlnet_config_from_json,
        tables.controlnet_table,
        r"down_blocks\.",
        lambda names: ControlNetConfig(shapes.diffusers_structure(names)),
        "control_model.",
    ),
    "controlnet-union": Kind(
        ControlNetUnionConfig,
        shapes.controlnet_union_config,
        ("ControlNetUnionModel", "ControlNetModel_Union"),
        configs.controlnet_union_json,
        configs.controlnet_union_config_from_json,
        tables.controlnet_union_table,
        r"down_blocks\.",
        lambda names: ControlNetUnionConfig(shapes.diffusers_structure(names)),
        "control_model.",
    ),
    "t2i-adapter": Kind(
        T2IAdapterConfig,
        t2i_adapter_config,
        ("T2IAdapter",),
        t2i_adapter_json,
        t2i_adapter_config_from_json,
        t2i_adapter_table,
        r"body\.\d+\.resnets\.",
        t2i_adapter_structure,
        prefix="adapter.",
        their_prefix="adapter.",
    ),
    "vae": Kind(
        AutoencoderConfig,
        autoencoder_config,
        ("AutoencoderKL", "VQModel"),
        configs.autoencoder_json,
        configs.autoencoder_config_from_json,
        tables.autoencoder_table,
        r"(encoder\.down_blocks|decoder\.up_blocks)\.",
        autoencoder_structure,
        "first_stage_model.",
        dropped=r"(loss|model_ema)\.",
    ),
    "tiny-vae": Kind(
        TinyAutoencoderConfig,
        shapes.tiny_autoencoder_config,
        ("AutoencoderTiny",),
        configs.tiny_autoencoder_json,
        configs.tiny_autoencoder_config_from_json,
        lambda config: tables.tiny_autoencoder_table(),
        r"(en|de)coder\.layers\.",
        prefix="taesd_",
    ),
    "text-encoder": Kind(
        CLIPTextConfig,
        clip_text_config,
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        configs.clip_text_json,
        configs.clip_text_config_from_json,
        lambda config: tables.CLIP_TEXT_BARE,
        r"embeddings\.",
        open_clip=("", tables.OPEN_CLIP_TEXT),
        dropped=r"logit_scale$|visual|vision_model\.|text_model\.embeddings\.position_ids$",
        stem="model",
    ),
    "image-encoder": Kind(
        CLIPVisionConfig,
        clip_vision_config,
        ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        configs.clip_vision_json,
        configs.clip_vision_config_from_json,
        lambda config: tables.CLIP_VISION_BARE,
        r"embeddings\.",
        open_clip=("visual.", tables.OPEN_CLIP_VISION),
        dropped=r"vision_model\.embeddings\.position_ids$",
        stem="model",
    ),
    "t5-encoder": Kind(
        T5Config,
        shapes.t5_config,
        ("T5EncoderModel", "T5Model", "T5ForConditionalGeneration"),
        configs.t5_json,
        configs.t5_config_from_json,
        lambda config: {},
        r"(?!)",  # ours are theirs
        dropped=T5_UNUSED,
        stem="model",
    ),
}


def component_kind(path: Path) -> str | None:
    """The one of KINDS that a file or folder holds, None where it is none of them, such as a whole model."""
    if path.is_dir():
        if (path / "model_index.json").exists() or not (path / CONFIG).exists():
            return None
        said = read_config(path)
        if "num_control_type" in said:  # published ones call themselves ControlNetModel
            return "controlnet-union"
        names = {said.get("_class_name"), *(said.get("architectures") or [])}
        return next((name for name, kind in KINDS.items() if names & set(kind.classes)), None)
    kind = kind_of_file(read_model_file(path))
    return kind if kind in KINDS else None


def read_config(folder: Path) -> Json:
    return parsed(read_text(folder / CONFIG), folder / CONFIG)


def read_component(path: Path) -> Component[Any]:
    """Open a network in a file of its own, or in a folder with its config.json; its config's type says what it is.

    Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    if not path.is_dir():
        return component_of(read_model_file(path))
    kind = known(component_kind(path), "folder", path)
    try:
        config = kind.from_json(read_config(path))
        return Component(config, under_our_names(read_weights(path)[0], kind, config))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def component_of(file: TensorFile) -> Component[Any]:
    """The network of a file that is already read."""
    name = kind_of_file(file)
    kind = known(name, name, file.path)
    try:
        tensors = under_our_names(file.tensors, kind)
        return Component(kind.config(shapes.of(tensors)), tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{file.path}: {error}") from error


def known(name: str | None, found: str, path: Path) -> Kind:
    if name not in KINDS:
        raise ModelFileError(f"{path} is of the kind {found}; one of {', '.join(KINDS)} is wanted")
    return KINDS[name]


def under_our_names(tensors: Mapping[str, Tensor], kind: Kind, config: object = None) -> dict[str, Tensor]:
    """Rename tensors from any dialect to our names. config: if None, what the table needs is read from the names."""
    if "difference" in tensors:
        raise ModelFileError("it holds differences from a base model's weights, not weights")
    inside = kind.prefix if any(name.startswith(kind.prefix) for name in tensors) else ""
    made = {name[len(inside) :]: value for name, value in tensors.items() if name.startswith(inside)}
    made = {name: value for name, value in made.items() if not re.match(kind.dropped, name)}
    if kind.config_type is TinyAutoencoderConfig and not any("coder." in name for name in made):
        half = "encoder" if "0.weight" in made else "decoder"  # the first layer of a decoder only clamps
        made = {f"{half}.{name}": value for name, value in made.items()}
    prefix, table = kind.open_clip or ("", {})
    if any(name.startswith(f"{prefix}transformer.resblocks.") for name in made):
        theirs = {name[len(prefix) :]: value for name, value in made.items() if name.startswith(prefix)}
        return translate(theirs, table)
    if any(re.match(kind.theirs, name) for name in made):
        made = tables.modern(made)
        table = kind.table(config or kind.structure(shapes.of(made)))
        # what the bare CLIP towers call as we do, such as their projection
        same = {name: made.pop(name) for name in list(made) if "_projection." in name}
        return translate(made, table, inverse=True) | same
    return made


def write_component(
    part: Component[Any],
    path: Path,
    layout: str,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write a network as a single safetensors file under our names, or as a folder that other tools open.

    metadata: of the single file.
    """
    kind = next(kind for kind in KINDS.values() if kind.config_type is type(part.config))
    if layout == "single":
        named = {f"{kind.prefix}{name}": value for name, value in part.tensors.items()}
        return write_tensors(path, named, metadata)
    is_clip = kind.stem == "model"  # whose names are transformers' own
    tensors = part.tensors if is_clip else translate(part.tensors, kind.table(part.config))
    tensors = {f"{kind.their_prefix}{name}": value for name, value in tensors.items()}
    content = dumped(kind.json(part.config))
    write_weights(path, kind.stem, tensors, LIMIT)
    write_text(path / CONFIG, content)
