"""The diffusers folder layout: opened here, and written so that other tools open it too."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inkwash.diffusion.schedules import NoiseSchedule, linear_betas, sqrt_linear_betas
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.clip import CLIPText
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last
from inkwash.weights import layouts, tables
from inkwash.weights.files import ModelFileError, atomic
from inkwash.weights.keymap import translate

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # diffusers' names and ours
MAX_SHARD = 16_000_000  # bytes of a shard as written


@dataclass(frozen=True)
class Parts:
    """What a folder holds."""

    unet: UNet
    autoencoder: AutoencoderKL
    text_encoder: CLIPText
    tokenizer: Tokenizer
    schedule: NoiseSchedule
    prediction: str  # eps, v or x0
    default_size: int  # pixels a side
    hash: str  # first 10 hex digits of the sha256 of the U-Net's weight files


def read_folder(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Parts:
    """Open a diffusers folder. Raises ModelFileError naming the first thing that is missing or does not fit."""
    index = read_json(folder / "model_index.json")
    wanted = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    for part in wanted:
        if part not in index or not (folder / part).is_dir():
            raise ModelFileError(f"{folder} has no {part}; a model needs {', '.join(wanted)}")

    unet_json = read_json(folder / "unet/config.json")
    unet_config = layouts.unet_config_from_json(unet_json)
    vae_config = layouts.autoencoder_config_from_json(read_json(folder / "vae/config.json"))
    text_config = layouts.clip_text_config_from_json(read_json(folder / "text_encoder/config.json"))
    unet_tensors, unet_files = read_weights(folder / "unet", "diffusion_pytorch_model")
    vae_tensors, _ = read_weights(folder / "vae", "diffusion_pytorch_model")
    text_tensors, _ = read_weights(folder / "text_encoder", "model")
    text_tensors.pop("text_model.embeddings.position_ids", None)  # older files carry this buffer
    if "embeddings.token_embedding.weight" in text_tensors:
        text_tensors = translate(text_tensors, tables.CLIP_TEXT_BARE, inverse=True)

    def build(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], part: str) -> Any:
        return channels_last(fill(make, tensors, folder / part)).to(device, dtype)

    schedule_json = read_json(folder / "scheduler/scheduler_config.json")
    unet = build(
        lambda: UNet(unet_config),
        translate(unet_tensors, tables.unet_table(unet_config), inverse=True),
        "unet",
    )
    old = any(".query." in key for key in vae_tensors)
    vae_table = tables.autoencoder_table(vae_config, tables.OLD_ATTENTION if old else tables.ATTENTION)
    autoencoder = build(
        lambda: AutoencoderKL(vae_config), translate(vae_tensors, vae_table, inverse=True), "vae"
    )
    text_encoder = build(lambda: CLIPText(text_config), text_tensors, "text_encoder")
    return Parts(
        unet=unet,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        tokenizer=read_tokenizer(folder / "tokenizer", text_config.max_length),
        schedule=read_schedule(schedule_json),
        prediction=read_prediction(schedule_json),
        default_size=unet_json.get("sample_size", 64) * vae_config.factor,
        hash=digest_of(unet_files)[:10],
    )


def fill(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], where: Path) -> nn.Module:
    """A module made without memory, its parameters then taken from `tensors`: every one, and no other."""
    with torch.device("meta"):
        module = make()
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key, shape in wanted.items():
        if key not in tensors:
            raise ModelFileError(f"{where} lacks {key}")
        if tuple(tensors[key].shape) != shape:
            raise ModelFileError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, {shape} is wanted")
    if surplus := [key for key in tensors if key not in wanted]:
        raise ModelFileError(f"{where} has a tensor that nothing takes: {surplus[0]}")
    module.load_state_dict(dict(tensors), assign=True)
    return module.eval().requires_grad_(False)


def read_weights(folder: Path, stem: str) -> tuple[dict[str, Tensor], list[Path]]:
    """Memory-mapped tensors of `stem.safetensors` or its shards, and those files."""
    whole, listing = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.exists():
        files = [whole]
    elif listing.exists():
        names = sorted(set(read_json(listing).get("weight_map", {}).values()))
        if bad := [name for name in names if Path(name).name != name]:
            raise ModelFileError(f"{listing} names a file outside its folder: {bad[0]}")
        files = [folder / name for name in names]
    else:
        raise ModelFileError(f"{folder} has no {whole.name}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ModelFileError(f"{file} can't be read: {error}") from error
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelFileError(f"{folder}: {key} holds values that are not finite")
    return tensors, files


def digest_of(files: Iterable[Path]) -> str:
    """The sha256, in hex, of the files' own ones."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds no JSON object")
    return content


def read_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    try:
        return Tokenizer.from_folder(folder, max_length=max_length)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{folder} can't be read: {error}") from error


def read_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    kinds = {"linear": linear_betas, "scaled_linear": sqrt_linear_betas}
    kind = config.get("beta_schedule", "linear")
    if kind not in kinds:
        raise ModelFileError(f"beta_schedule {kind!r} is not one of {', '.join(kinds)}")
    num = config.get("num_train_timesteps", 1000)
    betas = kinds[kind](num, config.get("beta_start", 0.0001), config.get("beta_end", 0.02))
    return NoiseSchedule.from_betas(betas)


def read_prediction(config: Mapping[str, Any]) -> str:
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ModelFileError(f"prediction_type {name!r} is not one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def write_folder(parts: Parts, folder: Path, beta_start: float = 0.00085, beta_end: float = 0.012) -> None:
    """Write the parts, in the dtype that they have, with square-root-linear betas."""
    config = parts.unet.config
    latent_size = parts.default_size // parts.autoencoder.config.factor
    write_json(folder / "unet/config.json", layouts.unet_json(config, latent_size))
    tensors = translate(parts.unet.state_dict(), tables.unet_table(config))
    write_weights(folder / "unet", "diffusion_pytorch_model", tensors)

    vae = parts.autoencoder
    write_json(folder / "vae/config.json", layouts.autoencoder_json(vae.config, parts.default_size))
    tensors = translate(vae.state_dict(), tables.autoencoder_table(vae.config))
    write_weights(folder / "vae", "diffusion_pytorch_model", tensors)

    text = parts.text_encoder
    ends = {
        "bos_token_id": parts.tokenizer.start,
        "eos_token_id": parts.tokenizer.end,
        "pad_token_id": parts.tokenizer.pad,
    }
    write_json(folder / "text_encoder/config.json", layouts.clip_text_json(text.config) | ends)
    write_weights(folder / "text_encoder", "model", text.state_dict())
    parts.tokenizer.save(folder / "tokenizer")

    back = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(parts.schedule.alphas_cumprod),
        "beta_schedule": "scaled_linear",
        "beta_start": beta_start,
        "beta_end": beta_end,
        "prediction_type": back[parts.prediction],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    write_json(folder / "scheduler/scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def write_weights(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    """One file, or shards of at most MAX_SHARD bytes with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in sorted(tensors.items()):
        if shards[-1] and size + value.nbytes > MAX_SHARD - 100_000:  # the header's share
            shards.append({})
            size = 0
        shards[-1][key] = value.contiguous()
        size += value.nbytes
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [f"{stem}.safetensors"]
    for old in folder.glob(f"{stem}*"):
        old.unlink()
    for name, shard in zip(names, shards, strict=True):
        with atomic(folder / name) as partial:
            save_file(shard, partial, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in tensors.values())
        write_json(
            folder / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": where},
        )
