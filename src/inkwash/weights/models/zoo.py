"""Folders of diffusers' pipelines for latent diffusion's zoo and for DDPM, as parts of a checkpoint.

LDMPipeline, LDMTextToImagePipeline and LDMSuperResolutionPipeline have a first stage, a "vqvae" of either kind;
DDPMPipeline and DDIMPipeline draw pixels. What is conditioned by classes, layouts or label maps has no pipeline there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, PixelConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.conditions import PictureConfig, VectorConfig
from inkwash.models.wordpiece import WordPiece
from inkwash.weights import configs
from inkwash.weights.checkpoint import KEPT, Checkpoint, Component, Json, TextComponent
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate

PIPELINES = (
    "LDMPipeline",
    "LDMTextToImagePipeline",
    "LDMSuperResolutionPipeline",
    "DDPMPipeline",
    "DDIMPipeline",
)
HEAD = "cond_stage_model.transformer."  # where single files have a head that only pre-training had a use for
Tensors = Mapping[str, Tensor]
Read = Callable[[str], Json]  # a folder's small file by its path


def zoo_checkpoint(
    read: Read, texts: Mapping[str, str], weights: Mapping[str, Tensors], where: Path, files: list[Path]
) -> Checkpoint:
    """The checkpoint of a folder's small files, by their paths, and its weights under their own names, by part.

    Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    pipeline = read("model_index.json")["_class_name"]
    pixels, text = pipeline in ("DDPMPipeline", "DDIMPipeline"), pipeline == "LDMTextToImagePipeline"
    wanted = ["unet", *(["vqvae"] * (not pixels)), *(["bert"] * text)]
    for part in wanted:
        if part not in weights:
            raise ModelFileError(f"{where} has no weights of {part}; a {pipeline} needs {', '.join(wanted)}")
    unet_json = read("unet/config.json")
    config = configs.unet_config_from_json(unet_json)
    unet = translate(tables.modern(weights["unet"]), tables.unet_table(config), inverse=True)
    size = unet_json.get("sample_size")
    if type(size) is not int or size < 1:
        raise ModelFileError(f"{where}/unet/config.json: sample_size {size!r} is not a whole number above 0")
    first_stage = pixel_stage(config.out_channels) if pixels else vqvae(read, weights["vqvae"])
    others = {
        f"{part}/{name}": value
        for part in weights
        if part not in (*wanted, KEPT)
        for name, value in weights[part].items()
    }
    others |= weights.get(KEPT, {})
    if text:
        others |= {f"{HEAD}{key}": value for key, value in weights["bert"].items() if "to_logits" in key}
    return Checkpoint(
        unet=Component(config, unet),
        autoencoder=first_stage,
        text=(bert(read, texts, weights["bert"], where),) if text else (),
        scheduler=read("scheduler/scheduler_config.json"),
        default_size=size * first_stage.config.factor,
        files=tuple(files),
        others=others,
        metadata=read(f"{KEPT}.json") if f"{KEPT}.json" in texts else {},
        texts={path: text for path, text in texts.items() if path != f"{KEPT}.json"},
    )


def pixel_stage(channels: int) -> Component[Any]:
    if channels not in (1, 3):
        raise ModelFileError(f"the U-Net draws {channels} channels; pictures have 1 or 3")
    return Component(PixelConfig(channels), {})


def vqvae(read: Read, tensors: Tensors) -> Component[Any]:
    config = configs.autoencoder_config_from_json(read("vqvae/config.json"))
    named = translate(tables.modern(tensors), tables.autoencoder_table(config), inverse=True)
    return Component(config, named)


def bert(read: Read, texts: Mapping[str, str], tensors: Tensors, where: Path) -> TextComponent:
    config = configs.bert_config_from_json(read("bert/config.json"))
    named = {key: value for key, value in tensors.items() if "to_logits" not in key}
    own = {path.rpartition("/")[2]: text for path, text in texts.items() if path.startswith("tokenizer/")}
    try:
        tokenizer = WordPiece.from_texts(own, config.max_length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{where}/tokenizer can't be read: {type(error).__name__} {error}") from error
    return TextComponent(config, translate(named, tables.bert_table(config), inverse=True), tokenizer)


def zoo_weights(
    read: Read, unet: Tensors, autoencoder: Tensors, text: Tensors
) -> dict[str, dict[str, Tensor]]:
    """A folder's weights, of networks under our names; of those that are there."""
    config = configs.unet_config_from_json(read("unet/config.json"))
    weights = {"unet": translate(unet, tables.unet_table(config))}
    if autoencoder:
        table = tables.autoencoder_table(configs.autoencoder_config_from_json(read("vqvae/config.json")))
        weights["vqvae"] = translate(autoencoder, table)
    if text:
        table = tables.bert_table(configs.bert_config_from_json(read("bert/config.json")))
        weights["bert"] = translate(text, table)
    return weights


def is_of_zoo(checkpoint: Checkpoint) -> bool:
    """Return True if a checkpoint has no CLIP tower, of text or of pictures."""
    pictured = checkpoint.cond_stage and isinstance(
        checkpoint.cond_stage.config, PictureConfig | VectorConfig
    )
    return not pictured and not any(not isinstance(text.config, BERTConfig) for text in checkpoint.text)


def zoo_parts(
    checkpoint: Checkpoint, others: dict[str, Tensor]
) -> tuple[dict[str, Json], dict[str, dict[str, Tensor]], dict[str, str]]:
    """A folder's JSON files by their paths, weights by part, and the tokenizer's files by their paths.

    others: what of the checkpoint's has a place there after all is taken out. Raises ModelFileError for a model that
    diffusers has no pipeline for.
    """
    c = checkpoint
    pixels = isinstance(c.autoencoder.config, PixelConfig)
    super_resolution = c.inputs.kind == "upscaler" and not pixels and not c.text
    if c.cond_stage or (c.inputs.kind != "base" and not super_resolution):
        what = (
            type(c.cond_stage.config).__name__
            if c.cond_stage
            else f"{c.inputs.kind} channels beside the latent"
        )
        raise ModelFileError(f"diffusers has no layout for a model with {what}; write it as a single file")
    size = c.default_size // c.autoencoder.config.factor
    files: dict[str, Json] = {
        "unet/config.json": configs.unet_json(c.unet.config, size),
        "scheduler/scheduler_config.json": c.scheduler,
    }
    parts: dict[str, dict[str, Tensor]] = {
        "unet/diffusion_pytorch_model": translate(c.unet.tensors, tables.unet_table(c.unet.config))
    }
    index: Json = {"_class_name": "LDMSuperResolutionPipeline" if super_resolution else "LDMPipeline"}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"unet": ["diffusers", files["unet/config.json"]["_class_name"]]}
    if isinstance(c.autoencoder.config, AutoencoderConfig):
        files["vqvae/config.json"] = configs.autoencoder_json(c.autoencoder.config, c.default_size)
        table = tables.autoencoder_table(c.autoencoder.config)
        parts["vqvae/diffusion_pytorch_model"] = translate(c.autoencoder.tensors, table)
        index["vqvae"] = ["diffusers", files["vqvae/config.json"]["_class_name"]]
    else:
        index["_class_name"] = "DDPMPipeline"
    texts: dict[str, str] = {}
    for text in c.text:
        assert isinstance(text.config, BERTConfig)
        files["bert/config.json"] = configs.bert_json(text.config)
        head = {key.removeprefix(HEAD): others.pop(key) for key in list(others) if key.startswith(HEAD)}
        parts["bert/model"] = translate(text.tensors, tables.bert_table(text.config)) | head
        texts |= {f"tokenizer/{name}": content for name, content in text.tokenizer.texts().items()}
        index |= {
            "_class_name": "LDMTextToImagePipeline",
            "bert": ["latent_diffusion", "LDMBertModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
        }
    return files | {"model_index.json": index}, parts, texts
