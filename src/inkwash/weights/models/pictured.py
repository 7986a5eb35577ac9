"""Parts in files that condition a model by a picture: Stable unCLIP's and SD1 image variations' CLIP and its statistics."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models import clip
from inkwash.models.conditions import PictureConfig, VectorConfig
from inkwash.weights import configs
from inkwash.weights.checkpoint import Component, Json
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from inkwash.weights.shapes import VISION as OWN

UNCLIP, VARIATION = "StableUnCLIPImg2ImgPipeline", "StableDiffusionImageVariationPipeline"
PRIOR = "StableUnCLIPPipeline"  # whose vectors a prior makes: it has no tower
PIPELINES = (UNCLIP, VARIATION, PRIOR)
PRIORS = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")  # and nothing that draws
# decoders of vectors that are not covered: their first stages and upscalers are of other kinds
UNCOVERED = re.compile(r"(Kandinsky|UnCLIP)(?!3).*Pipeline")
# where single files have the tower, in OpenCLIP's names: of unCLIP, and of image variations
VISUAL = {True: "embedder.model.visual.", False: "cond_stage_model.model.visual."}
STATISTICS = {"mean": "noise_augmentor.data_mean", "std": "noise_augmentor.data_std"}
NOISING = "squaredcos_cap_v2"  # the schedule by which unCLIP's vectors are noised
PRIOR_ALONE = "{} is a prior, which draws nothing alone; give it by --prior, beside a decoder"
Tensors = Mapping[str, Tensor]


def wanted_parts(index: Json, where: Path) -> tuple[list[str], list[str]]:
    """Suffixes of text encoders' names, and the parts that a folder must have.

    Raises ModelFileError for a prior's folder, and for a decoder's of a kind that is not covered.
    """
    pipeline = index.get("_class_name")
    if pipeline in PRIORS:
        raise ModelFileError(PRIOR_ALONE.format(where))
    if UNCOVERED.fullmatch(str(pipeline)):
        raise ModelFileError(
            f"{where} is a {pipeline}, whose decoder is not covered; priors of its kind open by --prior"
        )
    ends = [end for end in ("", "_2") if index.get(f"text_encoder{end}") not in (None, [None, None])]
    texts = [f"text_encoder{end}" for end in ends or [""] * (pipeline != VARIATION)]
    tower = ["image_encoder"] * (pipeline in (UNCLIP, VARIATION))
    return ends, ["unet", "vae", *texts, *tower]


def picture_component(
    read: Callable[[str], Json], weights: Mapping[str, Tensors], pipeline: str
) -> Component[Any]:
    """The stage of a folder. read: its small files by their paths; weights: its tensors, by part.

    Raises ModelFileError naming what is missing or does not fit.
    """
    if pipeline == PRIOR:
        return vector_component(read, weights)
    config = PictureConfig(
        configs.clip_vision_config_from_json(read("image_encoder/config.json")), pipeline == UNCLIP
    )
    tower = {k: v for k, v in weights["image_encoder"].items() if not k.endswith("embeddings.position_ids")}
    if "embeddings.class_embedding" in tower:
        projection = {k: tower.pop(k) for k in list(tower) if k.startswith("visual_projection.")}
        tower = translate(tower, tables.CLIP_VISION_BARE, inverse=True) | projection
    made = {f"{OWN}{name}": value for name, value in tower.items()}
    return Component(config, made | (statistics(read, weights) if config.noised else {}))


def statistics(read: Callable[[str], Json], weights: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """The mean and std of vectors in a folder of Stable unCLIP. Raises ModelFileError as `picture_component`."""
    kind = read("image_noising_scheduler/scheduler_config.json").get("beta_schedule")
    if kind != NOISING:
        raise ModelFileError(f"image_noising_scheduler: beta_schedule is {kind!r}, and not {NOISING!r}")
    if missing := STATISTICS.keys() - weights.get("image_normalizer", {}).keys():
        raise ModelFileError(f"image_normalizer lacks {min(missing)}, a statistic of its vectors")
    return dict(weights["image_normalizer"])


def vector_component(read: Callable[[str], Json], weights: Mapping[str, Tensors]) -> Component[Any]:
    """The stage of a folder whose vectors a prior makes."""
    found = statistics(read, weights)
    return Component(VectorConfig(found["mean"].shape[-1]), found)


def picture_weights(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """A folder's weights of the stage, by part."""
    tower = {name.removeprefix(OWN): value for name, value in tensors.items() if name.startswith(OWN)}
    own = {name: tensors[name] for name in STATISTICS if name in tensors}
    return ({"image_encoder": tower} if tower else {}) | ({"image_normalizer": own} if own else {})


def picture_files(config: PictureConfig | VectorConfig) -> tuple[dict[str, Json], Json]:
    """A folder's JSON files of the stage, by their paths, and its entries in `model_index.json`."""
    if isinstance(config, VectorConfig):
        files, index = statistics_files(config.vector_dim)
        return files, index | {"_class_name": PRIOR}
    side = config.vision.image_size
    processor: Json = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "do_convert_rgb": True,
        "do_normalize": True,
        "image_mean": list(clip.MEAN),
        "image_std": list(clip.STD),
    }
    files = {
        "image_encoder/config.json": configs.clip_vision_json(config.vision),
        "feature_extractor/preprocessor_config.json": processor,
    }
    index: Json = {
        "_class_name": UNCLIP if config.noised else VARIATION,
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    if config.noised:
        more, entries = statistics_files(config.vision.projection_dim)
        files, index = files | more, index | entries
    return files, index


def statistics_files(dim: int | None) -> tuple[dict[str, Json], Json]:
    """The configs of unCLIP's statistics and their noise schedule by path, and their entries in model_index.json."""
    normalizer: Json = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": dim}
    scheduler: Json = {"_class_name": "DDPMScheduler", "beta_schedule": NOISING, "num_train_timesteps": 1000}
    return {
        "image_normalizer/config.json": normalizer,
        "image_noising_scheduler/scheduler_config.json": scheduler,
    }, {
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    }


def from_single(others: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stage's tensors under our names, taken out of a single file's other tensors; none where there is none."""
    for noised, prefix in VISUAL.items():
        if f"{prefix}conv1.weight" not in others:
            continue
        tower = {
            name.removeprefix(prefix): others.pop(name) for name in list(others) if name.startswith(prefix)
        }
        made = {f"{OWN}{name}": value for name, value in translate(tower, tables.OPEN_CLIP_VISION).items()}
        return made | (
            {ours: others.pop(name) for ours, name in STATISTICS.items() if name in others} if noised else {}
        )
    return {}


def to_single(component: Component[Any]) -> dict[str, Tensor]:
    """The stage's tensors under the names of single files. Raises ModelFileError where it has no tower."""
    if isinstance(component.config, VectorConfig):
        raise ModelFileError("a model whose vectors a prior makes has no layout as a single file")
    prefix, tower = VISUAL[component.config.noised], picture_weights(component.tensors)["image_encoder"]
    named = translate(tower, tables.OPEN_CLIP_VISION, inverse=True)
    made = {f"{prefix}{name}": value for name, value in named.items()}
    return made | {
        name: component.tensors[ours] for ours, name in STATISTICS.items() if ours in component.tensors
    }
