"""Folders of a whole CLIP, both towers, as transformers' CLIPModel has them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from inkwash.files import ModelFileError, write_text
from inkwash.models.clip import MEAN, STD, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.weights import configs
from inkwash.weights.checkpoint import Component, build
from inkwash.weights.models.folder import dumped, parsed, read_weights, write_weights
from inkwash.weights.models.folder_files import read_text

LIMIT = 10_000_000_000  # bytes of a weight file, before it is sharded
POSITIONS = "embeddings.position_ids"  # counting, which older files hold


def is_clip(path: Path) -> bool:
    """Return True for a folder of a whole CLIP, both towers."""
    config = path / "config.json"
    return config.is_file() and parsed(read_text(config), config).get("model_type") == "clip"


def read_clip(folder: Path) -> tuple[CLIPText, CLIPVision, float, Tokenizer]:
    """Both towers with their projections, the logarithm of the logits' scale, and the tokenizer.

    Raises ModelFileError naming the first thing that is missing or does not fit.
    """
    if not (folder / "config.json").exists():
        raise ModelFileError(f"{folder} is not a folder of a CLIP: it has no config.json")
    said = parsed(read_text(folder / "config.json"), folder / "config.json")
    if said.get("model_type") != "clip":
        raise ModelFileError(
            f"{folder}/config.json: model_type is {said.get('model_type')!r}, and not 'clip'"
        )
    tensors = {key: value for key, value in read_weights(folder)[0].items() if not key.endswith(POSITIONS)}
    width = said.get("projection_dim", 512)
    towers = []
    for part, own, read, name in (
        ("text", "text_", configs.clip_text_config_from_json, "CLIPTextModelWithProjection"),
        ("vision", "visual_", configs.clip_vision_config_from_json, "CLIPVisionModelWithProjection"),
    ):
        config = read({**said.get(f"{part}_config", {}), "architectures": [name], "projection_dim": width})
        inside = {k: v for k, v in tensors.items() if k.startswith((f"{part}_model.", f"{own}projection."))}
        towers.append(build(Component(config, inside)))
    names = {
        f"{name}": read_text(folder / name)
        for name in ("vocab.json", "merges.txt")
        if (folder / name).exists()
    }
    if "logit_scale" not in tensors or len(names) < 2:
        raise ModelFileError(f"{folder} lacks logit_scale, vocab.json or merges.txt")
    tokenizer = Tokenizer.from_texts(names, towers[0].config.max_length)
    return towers[0], towers[1], float(tensors["logit_scale"]), tokenizer


def write_clip(
    folder: Path,
    towers: tuple[CLIPTextConfig, CLIPVisionConfig],
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
) -> None:
    """Write both towers, under transformers' names, with what its tokenizer and its picture processor read."""
    text, vision = towers
    ids = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection_dim,
        "text_config": configs.clip_text_json(text) | ids,
        "vision_config": configs.clip_vision_json(vision),
    }
    side = vision.image_size
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    write_weights(folder, "model", tensors, LIMIT)
    write_text(folder / "config.json", dumped(config))
    write_text(folder / "preprocessor_config.json", dumped(pictures))
    for name, content in tokenizer.texts().items():
        write_text(folder / name, content)
