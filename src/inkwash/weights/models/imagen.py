"""Folders of DeepFloyd IF, an Imagen: a U-Net of pixels with T5 as its text encoder, and its upscalers."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import PixelConfig
from inkwash.models.t5 import T5Config
from inkwash.models.unigram import Unigram
from inkwash.weights import configs
from inkwash.weights.checkpoint import KEPT, Checkpoint, Component, Json, TextComponent
from inkwash.weights.configs.imagen_unet import PIXELS
from inkwash.weights.configs.t5 import T5_UNUSED
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate

PIPELINES = {  # of diffusers, and whether they enlarge a picture
    "IFPipeline": False,
    "IFImg2ImgPipeline": False,
    "IFInpaintingPipeline": False,
    "IFSuperResolutionPipeline": True,
    "IFImg2ImgSuperResolutionPipeline": True,
    "IFInpaintingSuperResolutionPipeline": True,
}
NOISING = "squaredcos_cap_v2"  # the schedule by which pictures to enlarge are noised
Read = Callable[[str], Json]  # a folder's small file by its path


def imagen_checkpoint(
    read: Read,
    texts: Mapping[str, str],
    weights: Mapping[str, Mapping[str, Tensor]],
    where: Path,
    files: list[Path],
) -> Checkpoint:
    """The checkpoint of a folder's small files, by their paths, and its weights under their own names, by part.

    Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    pipeline = str(read("model_index.json")["_class_name"])
    wanted = ("unet", "text_encoder")
    if missing := [part for part in wanted if part not in weights]:
        raise ModelFileError(
            f"{where} has no weights of {missing[0]}; a {pipeline} needs {' and '.join(wanted)}"
        )
    unet_json, scheduler = read("unet/config.json"), read("scheduler/scheduler_config.json")
    config = configs.unet_config_from_json(unet_json)
    channels = PIXELS * (2 if PIPELINES[pipeline] else 1)
    if config.text_dim is None or config.in_channels != channels:
        raise ModelFileError(
            f"{where}/unet/config.json is not that of a {pipeline}, which sees text and {channels} channels"
        )
    size = unet_json.get("sample_size")
    if type(size) is not int or size < 1:
        raise ModelFileError(f"{where}/unet/config.json: sample_size {size!r} is not a whole number above 0")
    if PIPELINES[pipeline]:
        kind = read("image_noising_scheduler/scheduler_config.json").get("beta_schedule")
        if kind != NOISING:
            raise ModelFileError(f"image_noising_scheduler: beta_schedule is {kind!r}, and not {NOISING!r}")
    variances = config.learned_variance and scheduler.get("variance_type") == "learned_range"
    others = {
        f"{part}/{name}": value
        for part in weights.keys() - {*wanted, KEPT}
        for name, value in weights[part].items()
    }
    return Checkpoint(
        unet=Component(config, translate(weights["unet"], tables.unet_table(config), inverse=True)),
        autoencoder=Component(PixelConfig(PIXELS, threshold=threshold(scheduler), variances=variances), {}),
        text=(t5(read, texts, weights["text_encoder"], where),),
        scheduler=scheduler,
        default_size=size,
        files=tuple(files),
        others=others | dict(weights.get(KEPT, {})),
        metadata=read(f"{KEPT}.json") if f"{KEPT}.json" in texts else {},
        texts={path: text for path, text in texts.items() if path != f"{KEPT}.json"},
    )


def threshold(scheduler: Json) -> tuple[float, float]:
    """The quantile and the most of `PixelConfig`; without thresholding they are those of clamping."""
    if not scheduler.get("thresholding"):
        return 1.0, 1.0
    quantile, most = (
        scheduler.get("dynamic_thresholding_ratio", 0.995),
        scheduler.get("sample_max_value", 1.0),
    )
    if {type(quantile), type(most)} - {int, float} or not 0 < quantile <= 1 or not 1 <= most < 1e6:
        raise ModelFileError(
            f"dynamic_thresholding_ratio {quantile!r} is not in 0 to 1, or sample_max_value {most!r} below 1"
        )
    return float(quantile), float(most)


def t5(read: Read, texts: Mapping[str, str], tensors: Mapping[str, Tensor], where: Path) -> TextComponent:
    """The text tower, whose tokenizer puts prompts into small letters first, as it was trained."""
    config = configs.t5_config_from_json(read("text_encoder/config.json"))
    own = {path.rpartition("/")[2]: text for path, text in texts.items() if path.startswith("tokenizer/")}
    if "tokenizer.json" not in own:  # made of spiece.model, where that is there
        raise ModelFileError(f"{where}/tokenizer has neither spiece.model nor tokenizer.json")
    try:
        found = Unigram.from_texts(own, config.max_length)
        tokenizer = Unigram(found.scored, config.max_length, found.charsmap, found.hidden, lower=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{where}/tokenizer can't be read: {type(error).__name__} {error}") from error
    if max(tokenizer.vocab.values()) >= config.vocab_size:
        raise ModelFileError(
            f"{where}/tokenizer has {len(tokenizer.vocab)} tokens, and T5 {config.vocab_size}"
        )
    kept = {name: value for name, value in tensors.items() if not re.match(T5_UNUSED, name)}
    if "shared.weight" not in kept and "encoder.embed_tokens.weight" in tensors:
        kept["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    return TextComponent(config, kept, tokenizer)


def imagen_parts(
    c: Checkpoint,
) -> tuple[dict[str, Json], dict[str, dict[str, Tensor]], dict[str, str]]:
    """A folder's JSON files by their paths, weights by part, and the tokenizer's files by their paths."""
    (text,) = c.text
    assert isinstance(text.config, T5Config)
    enlarges = c.inputs.kind == "upscaler"
    absent = ("feature_extractor", "safety_checker", "watermarker")
    index: Json = {
        "_class_name": "IFSuperResolutionPipeline" if enlarges else "IFPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "requires_safety_checker": False,
        **{part: [None, None] for part in absent},
    }
    files: dict[str, Json] = {
        "unet/config.json": configs.unet_json(c.unet.config, c.default_size),
        "scheduler/scheduler_config.json": c.scheduler,
        "text_encoder/config.json": configs.t5_json(text.config),
    }
    if enlarges:
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
        noising: Json = {
            "_class_name": "DDPMScheduler",
            "beta_schedule": NOISING,
            "num_train_timesteps": 1000,
        }
        files["image_noising_scheduler/scheduler_config.json"] = noising
    parts = {
        "unet/diffusion_pytorch_model": translate(c.unet.tensors, tables.unet_table(c.unet.config)),
        "text_encoder/model": dict(text.tensors),
    }
    texts = {f"tokenizer/{name}": content for name, content in text.tokenizer.texts().items()}
    return files | {"model_index.json": index}, parts, texts
