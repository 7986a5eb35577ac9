"""Single-file checkpoints, read and written: the components' tensors with a prefix each, under the original names."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.diffusion.denoiser import EDM
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, PixelConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.conditions import ClassConfig, PictureConfig, SemanticConfig, VectorConfig
from inkwash.models.t5 import T5Config
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.wordpiece import WordPiece
from inkwash.weights import configs, shapes
from inkwash.weights.bytes.tensor_file import TensorFile, read_tensors, write_tensors
from inkwash.weights.checkpoint import KEPT, Checkpoint, Component, Json, TextComponent
from inkwash.weights.detect import Detected, detect_unet
from inkwash.weights.families import Family
from inkwash.weights.kinds import kind_of
from inkwash.weights.models.folder import checkpoint_from_folder, left_out
from inkwash.weights.models.folder_files import parsed
from inkwash.weights.models.pictured import picture_weights, to_single
from inkwash.weights.models.single_names import AUTOENCODER, COND_STAGE, TEXT, Sorted, sort
from inkwash.weights.models.zoo import PIPELINES, zoo_weights
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import UnknownKeys, translate
from inkwash.weights.names.wrappers import EMA, UNET, lone_averages, read_model_file, unwrapped
from inkwash.weights.scheduler import edm_scheduler_json, scheduler_json

AS_PARTS = ("unet", "vae", "tiny-vae", "text-encoder")
SDXL_TURBO = re.compile(r"sd[-_]?xl[-_]?turbo")
TEXTS = "inkwash_files"  # metadata: the small files of the folder that a file was written from


def read_single(path: Path, ema: bool = False, whole: bool = True) -> Checkpoint:
    """Open a checkpoint of one of FAMILIES.

    ema: with the U-Net's averaged weights. whole: refuse a file without its autoencoder or a text encoder.
    Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    file = read_model_file(path)
    try:
        kind, has_unet = kind_of_file(file), any(name.startswith(UNET) for name in file.tensors)
        if kind != "checkpoint" and not (kind == "unet" and has_unet):
            what = {"lora": "LoRA", "unknown": "file of no known kind"}.get(kind, kind)
            option = {"lora": "--lora", "hypernetwork": "--hypernetwork", "embedding": "--embedding"}.get(
                kind
            )
            hint = f"; pass it with {option or '--part'}" if option or kind in AS_PARTS else ""
            raise ModelFileError(f"this file is a {what}, not a full model{hint}")
        averages = ema and not lone_averages(
            unwrapped(read_tensors(path).tensors)
        )  # which are read as the U-Net
        checkpoint = sorted_checkpoint(file, sort(file.tensors), averages)
        if whole:
            check_whole(checkpoint)
        return checkpoint
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def check_whole(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint has all its networks; raise ModelFileError naming those missing, and how to give them."""
    if absent := checkpoint.missing:
        raise ModelFileError(
            f"it has no {' and no '.join(absent)}; give each from another file with --part FILE (parts= in Python)"
        )


def kind_of_file(file: TensorFile) -> str:
    """The kind of a file: `kind_of` its tensors, except that a U-Net that draws pixels is a whole model."""
    kind = kind_of(file.tensors)
    if kind != "unet" or not any(name.startswith(UNET) for name in file.tensors):
        return kind
    if TEXTS in file.metadata:  # written from a folder
        return "checkpoint"
    try:
        family = detect_unet(sort(file.tensors).unet, file.tensors, file.metadata)[1]
    except ModelFileError:
        return kind
    return "checkpoint" if isinstance(family.autoencoder, PixelConfig) else kind


def sorted_checkpoint(file: TensorFile, found: Sorted, ema: bool = False) -> Checkpoint:
    if found.unknown:
        raise UnknownKeys("not known", found.unknown, found.used)
    metadata = {key: value for key, value in file.metadata.items() if isinstance(value, str)}
    if TEXTS in metadata:
        return of_folder(file, found, metadata)
    config, family, detected = detect_unet(found.unet, file.tensors, file.metadata)
    towers, conditions = list(found.text.values()), found.cond_stage
    if not towers and any(name.startswith(shapes.VISION) for name in conditions):
        family = replace(family, text=(), cond_stage=shapes.picture_config(shapes.of(conditions)))
    if any(isinstance(tower.config, BERTConfig) for tower in family.text) and conditions:
        towers, conditions = [conditions], {}
    pixels = isinstance(family.autoencoder, PixelConfig)
    wanted = holding(len(family.text), not pixels, family.cond_stage is not None)
    here = holding(len(towers), bool(found.autoencoder), bool(conditions))
    surplus = len(towers) > len(family.text) or (pixels and found.autoencoder)
    if surplus or bool(conditions) != (family.cond_stage is not None):
        raise ModelFileError(f"{family.name} has {wanted}; here: {here}")
    return Checkpoint(
        unet=Component(
            config,
            averaged(found.unet, file.tensors) if ema else found.unet,
        ),
        autoencoder=Component(first_stage(family, found), found.autoencoder),
        text=text_components(family, towers),
        scheduler=schedule_of(family, detected, found.others),
        default_size=default_size(family, detected, file.path.name),
        files=(file.path,),
        sizes=family.sizes,
        zero_empty=family.zero_empty,
        cond_stage=cond_stage_component(family, conditions),
        others=found.others,
        metadata=metadata,
    )


def of_zoo_folder(file: TensorFile, found: Sorted, texts: dict[str, str]) -> Checkpoint:
    """The checkpoint of a file that was written from a folder of latent diffusion or DDPM."""

    def read(path: str) -> Json:
        if path not in texts:
            raise ModelFileError(f"{file.path} has no description {path}")
        return parsed(texts[path], file.path)

    weights = zoo_weights(read, found.unet, found.autoencoder, found.cond_stage)
    if found.cond_stage and not {"tokenizer/vocab.txt", "tokenizer/tokenizer.json"} & texts.keys():
        texts |= {"tokenizer/vocab.txt": WordPiece.bert().texts()["vocab.txt"]}
    made = checkpoint_from_folder(texts, weights, file.path, [file.path])
    return replace(made, others=found.others)


def holding(num_texts: int, autoencoder: bool, conditions: bool) -> str:
    """Words for the parts that a file has, or should have."""
    networks = f"{num_texts} text encoders and {'an' if autoencoder else 'no'} autoencoder"
    return networks + (", and a stage for conditions other than text" if conditions else "")


def scale_factor(family: Family, found: Sorted) -> float:
    """The file's own, where it was measured on the first batch of its training."""
    value = found.others.get("scale_factor")
    if value is None or value.numel() != 1:
        return family.autoencoder.scale_factor
    if not 0 < (scale := float(value)) < float("inf"):
        raise ModelFileError(f"scale_factor is {scale}, and not a number above 0")
    return scale


def cond_stage_component(family: Family, tensors: dict[str, Tensor]) -> Component[Any] | None:
    if family.cond_stage is None:
        return None
    read = {
        BERTConfig: shapes.bert_config,
        ClassConfig: shapes.class_config,
        PictureConfig: shapes.picture_config,
        SemanticConfig: shapes.semantic_config,
    }
    return Component(read[type(family.cond_stage)](shapes.of(tensors)), tensors)


def first_stage(family: Family, found: Sorted) -> AutoencoderConfig | PixelConfig:
    """The autoencoder's config from its shapes; how latents are scaled, which no shape says, from the file or the family."""
    if isinstance(family.autoencoder, PixelConfig):
        return family.autoencoder
    if not found.autoencoder:
        return replace(family.autoencoder, scale_factor=scale_factor(family, found))
    config = shapes.autoencoder_config(shapes.of(found.autoencoder), scale_factor(family, found))
    marks = [found.others.get(f"edm_{name}") for name in ("mean", "std")]
    if all(mark is not None for mark in marks):  # Playground's
        mean, std = (tuple(mark.flatten().tolist()) for mark in marks if mark is not None)
        return replace(config, scale_factor=0.5, latents_mean=mean, latents_std=std)
    return config


def schedule_of(family: Family, detected: Detected, others: Mapping[str, Tensor]) -> Json:
    if detected.prediction in EDM:
        ends = {end: others.get(f"edm_vpred.{end}") for end in ("sigma_min", "sigma_max")}
        given = {end: float(value.flatten()[0]) for end, value in ends.items() if value is not None}
        return edm_scheduler_json(detected.prediction, **given)
    return scheduler_json(detected.prediction, family.betas, detected.zero_terminal_snr, family.beta_schedule)


def of_folder(file: TensorFile, found: Sorted, metadata: dict[str, str]) -> Checkpoint:
    """The checkpoint of a file that was written from a folder, whose small files say what shapes don't."""
    texts = {str(path): str(text) for path, text in parsed(metadata.pop(TEXTS), file.path).items()}
    if parsed(texts.get("model_index.json", "{}"), file.path).get("_class_name") in PIPELINES:
        return replace(of_zoo_folder(file, found, texts), metadata=metadata)
    folder = {name: parsed(texts.get(f"{name}/config.json", "{}"), file.path) for name in ("unet", "vae")}
    weights = {
        "unet": translate(found.unet, tables.unet_table(configs.unet_config_from_json(folder["unet"]))),
        "vae": translate(
            found.autoencoder, tables.autoencoder_table(configs.autoencoder_config_from_json(folder["vae"]))
        ),
        KEPT: dict(found.others),
        **(picture_weights(found.cond_stage) if found.cond_stage else {}),
    }
    ends = sorted(
        path.split("/")[0] for path in texts if re.fullmatch(r"text_encoder(_2)?/config\.json", path)
    )
    if len(ends) != len(found.text):
        raise ModelFileError(f"there are {len(found.text)} text encoders, and descriptions of {len(ends)}")
    for part, tensors in zip(ends, found.text.values(), strict=True):
        keep = configs.clip_text_config_from_json(parsed(texts[f"{part}/config.json"], file.path)).num_layers
        left = left_out(tensors, keep) if ends == ["text_encoder"] else {}  # SDXL's towers are whole
        weights[KEPT] |= {f"{KEPT}.{part}.{name}": value for name, value in left.items()}
        weights[part] = {name: value for name, value in tensors.items() if name not in left}
        tokenizer = part.replace("text_encoder", "tokenizer")
        if f"{tokenizer}/vocab.json" not in texts and f"{tokenizer}/tokenizer.json" not in texts:
            own = Tokenizer.clip().texts()
            texts |= {f"{tokenizer}/{name}": own[name] for name in ("vocab.json", "merges.txt")}
    made = checkpoint_from_folder(texts, weights, file.path, [file.path])
    return replace(made, metadata=metadata)


def text_components(family: Family, towers: list[dict[str, Tensor]]) -> tuple[TextComponent, ...]:
    made = []
    if len(towers) < len(family.text):
        by_width = {width_of(tensors): tensors for tensors in towers}
        towers = [by_width.get(tower.config.width, {}) for tower in family.text]
    for tower, tensors in zip(family.text, towers, strict=True):
        if not tensors:  # for a part to take its place
            words = WordPiece.bert() if isinstance(tower.config, BERTConfig) else Tokenizer.clip(tower.pad)
            made.append(TextComponent(tower.config, {}, words, tower.skip, tower.final_norm))
            continue
        if isinstance(tower.config, BERTConfig):
            config = shapes.bert_config(shapes.of(tensors))
            made.append(TextComponent(config, tensors, WordPiece.bert(config.max_length)))
            continue
        config = shapes.clip_text_config(shapes.of(tensors), tower.config.activation)
        # a file that was converted may lack the layers that are left out
        skip = tower.skip - (tower.config.num_layers - config.num_layers)
        made.append(TextComponent(config, tensors, Tokenizer.clip(tower.pad), max(1, skip), tower.final_norm))
    return tuple(made)


def width_of(tower: Mapping[str, Tensor]) -> int:
    """Channels of a text tower's tokens."""
    names = ("text_model.embeddings.token_embedding.weight", "transformer.token_emb.weight")
    found = [tower[name] for name in names if name in tower]
    return found[0].shape[-1] if found else 0


def averaged(unet: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's averages, whose names have lost their dots."""
    names = {name: EMA + f"diffusion_model.{name}".replace(".", "") for name in unet}
    if missing := [name for name in names.values() if name not in tensors]:
        raise ModelFileError(f"there are no averaged weights: {missing[0]} is missing")
    return {name: tensors[key] for name, key in names.items()}


def default_size(family: Family, detected: Detected, name: str) -> int:
    """SD2's models of v are of 768 pixels, and SDXL-Turbo, which only the file's name tells from SDXL, of 512."""
    if family.name == "sdxl" and SDXL_TURBO.search(name.lower()):
        return 512
    return 768 if family.name == "sd2" and detected.prediction == "v" else family.default_size


def write_single(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint as one safetensors file, under the names that every program of the field reads."""
    write_tensors(path, *single_tensors(checkpoint))


def single_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint's single file."""
    tensors = {f"{UNET}{name}": value for name, value in checkpoint.unet.tensors.items()}
    tensors |= {f"{AUTOENCODER}{name}": value for name, value in checkpoint.autoencoder.tensors.items()}
    for prefix, text in zip(text_prefixes(checkpoint), checkpoint.text, strict=True):
        table = TEXT.get(prefix)
        named = text.tensors if table is None else translate(text.tensors, table, inverse=True)
        tensors |= {f"{prefix}{name}": value for name, value in named.items()}
    if checkpoint.cond_stage and isinstance(checkpoint.cond_stage.config, PictureConfig | VectorConfig):
        tensors |= to_single(checkpoint.cond_stage)
    elif checkpoint.cond_stage:
        tensors |= {f"{COND_STAGE}{name}": value for name, value in checkpoint.cond_stage.tensors.items()}
    small = dict(checkpoint.texts)
    vocab = checkpoint.text[-1].tokenizer.vocab if checkpoint.text else {}
    if small and vocab in (Tokenizer.clip().vocab, WordPiece.bert().vocab):  # every reader has those
        endings = ("vocab.json", "merges.txt", "tokenizer.json", "vocab.txt")
        small = {p: t for p, t in small.items() if not (p.startswith("tokenizer") and p.endswith(endings))}
    texts = {TEXTS: json.dumps(small, ensure_ascii=False)} if small else {}
    return tensors | dict(checkpoint.others), dict(checkpoint.metadata) | texts


def text_prefixes(checkpoint: Checkpoint) -> list[str]:
    """Prefixes of a file's text towers."""
    if not checkpoint.text:
        return []
    config = checkpoint.text[-1].config
    if isinstance(config, T5Config):
        raise ModelFileError("a model with T5 has no layout as a single file; keep it as a folder")
    if isinstance(config, BERTConfig):
        return [COND_STAGE]
    if checkpoint.sizes:
        both = ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]
        return both if len(checkpoint.text) > 1 else ["conditioner.embedders.0.model."]
    return ["cond_stage_model.model." if config.activation == "gelu" else "cond_stage_model.transformer."]
