"""What conditions a model by a picture, in files: Stable unCLIP's and SD1 image variations' CLIP and its statistics."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models import clip
from inkwash.models.conditions import PictureConfig
from inkwash.weights import configs
from inkwash.weights.checkpoint import Component, Json
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from inkwash.weights.shapes import VISION as OWN

UNCLIP, VARIATION = "StableUnCLIPImg2ImgPipeline", "StableDiffusionImageVariationPipeline"
PIPELINES = (UNCLIP, VARIATION)
# where single files have the tower, in OpenCLIP's names: of unCLIP, and of image variations
VISUAL = {True: "embedder.model.visual.", False: "cond_stage_model.model.visual."}
STATISTICS = {"mean": "noise_augmentor.data_mean", "std": "noise_augmentor.data_std"}
NOISING = "squaredcos_cap_v2"  # the schedule by which unCLIP's vectors are noised
Tensors = Mapping[str, Tensor]


def picture_component(
    read: Callable[[str], Json], weights: Mapping[str, Tensors], pipeline: str
) -> Component:
    """The stage of a folder. read: its small files by their paths; weights: its tensors, by part.

    Raises ModelFileError naming what is missing or does not fit.
    """
    config = PictureConfig(
        configs.clip_vision_config_from_json(read("image_encoder/config.json")), pipeline == UNCLIP
    )
    tower = {k: v for k, v in weights["image_encoder"].items() if not k.endswith("embeddings.position_ids")}
    if "embeddings.class_embedding" in tower:
        projection = {k: tower.pop(k) for k in list(tower) if k.startswith("visual_projection.")}
        tower = translate(tower, tables.CLIP_VISION_BARE, inverse=True) | projection
    made = {f"{OWN}{name}": value for name, value in tower.items()}
    if config.noised:
        kind = read("image_noising_scheduler/scheduler_config.json").get("beta_schedule")
        if kind != NOISING:
            raise ModelFileError(f"image_noising_scheduler: beta_schedule is {kind!r}, and not {NOISING!r}")
        if "image_normalizer" not in weights:
            raise ModelFileError("it has no weights of image_normalizer, the statistics of its vectors")
        made |= weights["image_normalizer"]
    return Component(config, made)


def picture_weights(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """A folder's weights of the stage, by part."""
    tower = {name.removeprefix(OWN): value for name, value in tensors.items() if name.startswith(OWN)}
    own = {name: tensors[name] for name in STATISTICS if name in tensors}
    return {"image_encoder": tower} | ({"image_normalizer": own} if own else {})


def picture_files(config: PictureConfig) -> tuple[dict[str, Json], Json]:
    """A folder's JSON files of the stage, by their paths, and its entries in `model_index.json`."""
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
        dim = config.vision.projection_dim
        files |= {
            "image_normalizer/config.json": {
                "_class_name": "StableUnCLIPImageNormalizer",
                "embedding_dim": dim,
            },
            "image_noising_scheduler/scheduler_config.json": {
                "_class_name": "DDPMScheduler",
                "beta_schedule": NOISING,
                "num_train_timesteps": 1000,
            },
        }
        index |= {
            "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
            "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        }
    return files, index


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
    """The stage's tensors under the names of single files."""
    prefix, tower = VISUAL[component.config.noised], picture_weights(component.tensors)["image_encoder"]
    named = translate(tower, tables.OPEN_CLIP_VISION, inverse=True)
    made = {f"{prefix}{name}": value for name, value in named.items()}
    return made | {
        name: component.tensors[ours] for ours, name in STATISTICS.items() if ours in component.tensors
    }
