"""The diffusers folder layout: read here, and written so that other tools open it too."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from inkwash.files import ModelFileError, write_text
from inkwash.models.autoencoder import PixelConfig
from inkwash.models.clip import CLIPTextConfig
from inkwash.models.conditions import PictureConfig, VectorConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNetConfig
from inkwash.weights import configs
from inkwash.weights.checkpoint import KEPT, Checkpoint, Component, Json, TextComponent
from inkwash.weights.configs.unet import SIZE_EMBED_DIM
from inkwash.weights.inputs import inputs_of
from inkwash.weights.models.folder_files import (
    dumped,
    inside,
    parsed,
    read_weights,
    small_files,
    weight_folders,
    write_weights,
)
from inkwash.weights.models.imagen import PIPELINES as IMAGEN
from inkwash.weights.models.imagen import imagen_checkpoint, imagen_parts
from inkwash.weights.models.pictured import PIPELINES as PICTURED
from inkwash.weights.models.pictured import (
    PRIOR_ALONE,
    picture_component,
    picture_files,
    picture_weights,
    wanted_parts,
)
from inkwash.weights.models.zoo import PIPELINES, is_of_zoo, zoo_checkpoint, zoo_parts
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from inkwash.weights.scheduler import scheduler_json

BASE = (
    "inkwash_base"  # in model_index.json: a folder beside, whose parts stand in for those that are not here
)
DDPM_SCHEDULER = scheduler_json("eps", (0.0001, 0.02), beta_schedule="linear")
LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
DIFFUSERS = "0.30.0"  # the version that folders name as theirs; some pipelines ask for it


def read_folder(folder: Path, variant: str | None = None) -> Checkpoint:
    """Open a diffusers folder of SD1, SD2, SDXL, its refiner or one of their kin, of latent diffusion or of DDPM.

    variant: such as "fp16", the weights to take where a folder has several; by default the plain ones, else the only
    ones. Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    texts, parts = small_files(folder), weight_folders(folder)
    if "model_index.json" not in texts and "prior/config.json" in texts:
        raise ModelFileError(PRIOR_ALONE.format(folder))
    if base := base_of(folder, texts):
        shared, name = small_files(base), "model_index.json"
        index = parsed(shared.get(name, "{}"), base / name) | parsed(texts[name], folder / name)
        texts = shared | texts | {name: dumped({key: value for key, value in index.items() if key != BASE})}
        parts = weight_folders(base) | parts
    weights = {name: read_weights(part, variant) for name, part in sorted(parts.items())}
    alone = parsed(texts.get("config.json", "{}"), folder / "config.json")
    if "unet" not in weights and alone.get("_class_name") == "UNet2DModel":
        texts, weights = flat_ddpm(texts), {"unet": read_weights(folder, variant)}
    return checkpoint_from_folder(
        texts,
        {name: tensors for name, (tensors, _) in weights.items()},
        folder,
        weights["unet"][1] if "unet" in weights else [],
    )


def base_of(folder: Path, texts: Mapping[str, str]) -> Path | None:
    """The folder whose parts a folder of a variant's U-Net alone takes, if it names one."""
    where = folder / "model_index.json"
    name = parsed(texts.get(where.name, "{}"), where).get(BASE)
    if name is None:
        return None
    # a name alone: no path, and not the dots that lead out
    plain = isinstance(name, str) and Path(name).name == name and name.strip(".")
    if not plain or not (base := folder.resolve().parent / name).is_dir():
        raise ModelFileError(f"{where}: {BASE} {name!r} is not a folder beside {folder}")
    return base


def flat_ddpm(texts: Mapping[str, str]) -> dict[str, str]:
    """The small files of a folder that is one UNet2DModel, with its scheduler beside it or that of Ho et al. 2020."""
    named = dict(texts)
    named["unet/config.json"] = named.pop("config.json")
    own = dumped(DDPM_SCHEDULER)
    named["scheduler/scheduler_config.json"] = named.pop("scheduler_config.json", own)
    return {"model_index.json": dumped({"_class_name": "DDPMPipeline"})} | named


def checkpoint_from_folder(
    texts: Mapping[str, str], weights: dict[str, dict[str, Tensor]], where: Path, files: list[Path]
) -> Checkpoint:
    """The checkpoint of a folder's small files, by their paths, and its weights under their own names, by part."""

    def read(path: str) -> Json:
        if path not in texts:
            raise ModelFileError(f"{where} has no {path}")
        return parsed(texts[path], where / path)

    index = read("model_index.json")
    if index.get("_class_name") in PIPELINES:
        return zoo_checkpoint(read, texts, weights, where, files)
    if index.get("_class_name") in IMAGEN:
        return imagen_checkpoint(read, texts, weights, where, files)
    pipeline = index.get("_class_name")
    pictured = pipeline in PICTURED
    ends, wanted = wanted_parts(index, where)
    for part in wanted:
        if part not in weights or (part == "text_encoder" and not ends):
            raise ModelFileError(f"{where} has no weights of {part}; a model needs {', '.join(wanted)}")
    unet_json, scheduler = read("unet/config.json"), read("scheduler/scheduler_config.json")
    unet_config = configs.unet_config_from_json(unet_json)
    vae_config = configs.autoencoder_config_from_json(read("vae/config.json"))
    vae, vae_table = tables.modern(weights["vae"]), tables.autoencoder_table(vae_config)
    others = dict(weights.get(KEPT, {}))
    text = tuple(
        text_component(
            configs.clip_text_config_from_json(read(f"text_encoder{end}/config.json")),
            weights[f"text_encoder{end}"],
            {
                name.rpartition("/")[2]: text
                for name, text in texts.items()
                if name.startswith(f"tokenizer{end}/")
            },
            others if unet_config.vector_dim is None or unet_config.image_vector else None,
            where / f"tokenizer{end}",
        )
        for end in ends
    )
    for part in weights.keys() - {*wanted, KEPT, *["image_normalizer"] * pictured}:
        others |= {f"{part}/{name}": value for name, value in weights[part].items()}
    pooled_dim = text[-1].config.projection_dim or 0 if text else 0
    sizes_dim = 0 if unet_config.image_vector else (unet_config.vector_dim or pooled_dim) - pooled_dim
    return Checkpoint(
        unet=Component(unet_config, translate(weights["unet"], tables.unet_table(unet_config), inverse=True)),
        autoencoder=Component(vae_config, translate(vae, vae_table, inverse=True)),
        text=text,
        scheduler=scheduler,
        default_size=sample_size_of(unet_json, where) * vae_config.factor,
        files=tuple(files),
        sizes=sizes_dim // SIZE_EMBED_DIM,
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
        cond_stage=picture_component(read, weights, str(pipeline)) if pictured else None,
        others=others,
        metadata=parsed(texts.get(f"{KEPT}.json", "{}"), where / f"{KEPT}.json"),
        texts={path: text for path, text in texts.items() if path != f"{KEPT}.json"},
    )


def sample_size_of(unet_json: Json, where: Path) -> int:
    """The latent size that a U-Net draws by default. Raises ModelFileError for one that is no whole number above 0."""
    sample_size = unet_json.get("sample_size", 64)
    if type(sample_size) is not int or sample_size < 1:
        raise ModelFileError(
            f"{where}/unet/config.json: sample_size {sample_size!r} is not a whole number above 0"
        )
    return sample_size


def text_component(
    config: CLIPTextConfig,
    tensors: dict[str, Tensor],
    tokenizer_texts: Mapping[str, str],
    kept: dict[str, Tensor] | None,
    where: Path,
) -> TextComponent:
    """A text tower. kept: where the layers may lie that its folder lacks; None for SDXL's towers, which are whole."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith("embeddings.position_ids")}
    if "embeddings.token_embedding.weight" in tensors:
        tensors = translate(tensors, tables.CLIP_TEXT_BARE, inverse=True)
    try:
        tokenizer = Tokenizer.from_texts(tokenizer_texts, config.max_length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{where} can't be read: {type(error).__name__} {error}") from error
    if kept is None:
        return TextComponent(config, tensors, tokenizer, skip=2, final_norm=False)
    mark = f"{KEPT}.text_encoder."
    left = {name[len(mark) :]: kept.pop(name) for name in list(kept) if name.startswith(mark)}
    layers = {layer_of(name) for name in left} - {-1}
    projection = left.get("text_projection.weight")
    whole = replace(
        config,
        num_layers=config.num_layers + len(layers),
        projection_dim=config.projection_dim if projection is None else projection.shape[0],
    )
    return TextComponent(whole, tensors | left, tokenizer, skip=1 + len(layers))


def write_folder(checkpoint: Checkpoint, folder: Path, max_shard: int = 10_000_000_000) -> None:
    """Write a checkpoint as a folder that diffusers and transformers open; weight files of at most max_shard bytes."""
    c, others = checkpoint, dict(checkpoint.others)
    imagen = c.unet.config.text_dim is not None
    if imagen or is_of_zoo(c):
        files, parts, texts = imagen_parts(c) if imagen else zoo_parts(c, others)
        texts |= {path: dumped(content) for path, content in files.items()}
    else:
        texts, parts = stable_parts(c, others)
    for name in [name for name in others if "/" in name]:
        part, _, key = name.partition("/")
        parts.setdefault(f"{part}/model", {})[key] = others.pop(name)
    for path, tensors in parts.items():
        write_weights(inside(folder, path).parent, Path(path).name, tensors, max_shard)
    for path, content in (texts | dict(c.texts)).items():
        write_text(inside(folder, path), content)
    if others:
        write_weights(folder / KEPT, "model", others, max_shard)
    if c.metadata:
        write_text(folder / f"{KEPT}.json", dumped(c.metadata))


def stable_parts(
    c: Checkpoint, others: dict[str, Tensor]
) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    """Small files and weights of a Stable Diffusion folder, by their paths; others gets what has no place there."""
    first_stage = c.autoencoder.config
    if isinstance(first_stage, PixelConfig):
        raise ModelFileError("diffusers has no layout for a model of pixels that sees text")
    texts = {
        "unet/config.json": dumped(configs.unet_json(c.unet.config, c.default_size // first_stage.factor)),
        "vae/config.json": dumped(configs.autoencoder_json(first_stage, c.default_size)),
        "scheduler/scheduler_config.json": dumped(c.scheduler),
    }
    unet = translate(c.unet.tensors, tables.unet_table(c.unet.config))
    vae = translate(c.autoencoder.tensors, tables.autoencoder_table(first_stage))
    parts = {"unet/diffusion_pytorch_model": unet, "vae/diffusion_pytorch_model": vae}
    ends = ["", "_2"] if len(c.text) > 1 else ["_2"] if c.sizes else [""] * len(c.text)
    for end, text in zip(ends, c.text, strict=True):
        config, tensors, left = text.config, dict(text.tensors), {}
        if not c.sizes:
            config, tensors, left = without_last(text)
        others |= {f"{KEPT}.text_encoder.{name}": value for name, value in left.items()}
        parts[f"text_encoder{end}/model"] = tensors
        own = text.tokenizer
        ids = {"bos_token_id": own.start, "eos_token_id": own.end, "pad_token_id": own.pad}
        texts[f"text_encoder{end}/config.json"] = dumped(configs.clip_text_json(config) | ids)
        texts |= {f"tokenizer{end}/{name}": content for name, content in text.tokenizer.texts().items()}
    index = model_index(ends, c.sizes, c.zero_empty)
    index |= PIPELINE_OF.get((c.inputs.kind, bool(c.sizes)), {})
    if c.cond_stage and isinstance(c.cond_stage.config, PictureConfig | VectorConfig):
        files, own = picture_files(c.cond_stage.config)
        texts |= {path: dumped(content) for path, content in files.items()}
        index |= own
        for part, tensors in picture_weights(c.cond_stage.tensors).items():
            stem = "model" if part == "image_encoder" else "diffusion_pytorch_model"
            parts[f"{part}/{stem}"] = tensors
    texts["model_index.json"] = dumped(index)
    return texts, parts


def write_unet(
    unet: Component[UNetConfig],
    latent_size: int,
    folder: Path,
    base: Path,
    max_shard: int = 10_000_000_000,
    metadata: Mapping[str, str] = {},
) -> None:
    """Write a U-Net as a folder that takes all else from the model `base`, a folder beside it.

    latent_size: a side of what it draws by default. metadata: in place of the base's.
    Raises ValueError where `base` is not beside `folder`.
    """
    if base.resolve().parent != folder.resolve().parent:
        raise ValueError(f"{base} does not lie beside {folder}, so that one can't take its parts")
    tensors = translate(unet.tensors, tables.unet_table(unet.config))
    write_weights(folder / "unet", "diffusion_pytorch_model", tensors, max_shard)
    write_text(folder / "unet" / "config.json", dumped(configs.unet_json(unet.config, latent_size)))
    name = "model_index.json"
    shared = parsed(
        small_files(base).get(name, "{}"), base / name
    )  # so that diffusers knows the parts' classes
    own = PIPELINE_OF.get((inputs_of(unet.config).kind, False), {}) | {"_diffusers_version": DIFFUSERS}
    write_text(folder / name, dumped(shared | own | {BASE: base.name}))
    if metadata:
        write_text(folder / f"{KEPT}.json", dumped(dict(metadata)))


def without_last(text: TextComponent) -> tuple[CLIPTextConfig, dict[str, Tensor], dict[str, Tensor]]:
    """A tower as transformers' CLIPTextModel: without the layers that are left out, and without a projection."""
    keep = text.config.num_layers - text.skip + 1
    config = replace(text.config, num_layers=keep, projection_dim=None)
    left = left_out(text.tensors, keep)
    return config, {name: value for name, value in text.tensors.items() if name not in left}, left


def left_out(tensors: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """A tower's tensors that a CLIPTextModel of so many layers has no place for."""
    return {
        name: value
        for name, value in tensors.items()
        if name == "text_projection.weight" or layer_of(name) >= keep
    }


def layer_of(name: str) -> int:
    """The number of the text tower's layer that a tensor belongs to, -1 for none."""
    layer = LAYER.match(name)
    return int(layer[1]) if layer else -1


# pipelines of variants, that have the parts of the plain one; by the variant and whether it is an SDXL
PIPELINE_OF: dict[tuple[str, bool], Json] = {
    ("inpainting", False): {"_class_name": "StableDiffusionInpaintPipeline"},
    ("inpainting", True): {"_class_name": "StableDiffusionXLInpaintPipeline"},
    ("instruct-pix2pix", False): {"_class_name": "StableDiffusionInstructPix2PixPipeline"},
}


def model_index(ends: list[str], sizes: int, zero_empty: bool) -> Json:
    """The classes of diffusers and transformers that open the parts, and their pipeline."""
    index: Json = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS,  # what some of its pipelines look for
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    if sizes:
        kind = "StableDiffusionXLPipeline" if len(ends) > 1 else "StableDiffusionXLImg2ImgPipeline"
        index = {"_class_name": kind, "force_zeros_for_empty_prompt": zero_empty}
        index |= {} if len(ends) > 1 else {"requires_aesthetics_score": True}
    for end in ("", "_2") if sizes else ("",):
        kind = "CLIPTextModelWithProjection" if end else "CLIPTextModel"
        index[f"text_encoder{end}"] = ["transformers", kind] if end in ends else [None, None]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"] if end in ends else [None, None]
    return index | {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
