"""A diffusion prior in a folder of diffusers': Karlo's, Stable unCLIP's or Kandinsky's, and the text tower that it reads."""

from dataclasses import dataclass
from pathlib import Path

from inkwash.files import ModelFileError, write_text
from inkwash.models.prior import PriorConfig
from inkwash.weights import configs
from inkwash.weights.checkpoint import Component, Json, TextComponent
from inkwash.weights.models.folder import (
    dumped,
    parsed,
    read_weights,
    small_files,
    text_component,
    write_weights,
)

# where pipelines have the text tower, its tokenizer and the schedule
PLACES = (
    ("prior_text_encoder", "prior_tokenizer", "prior_scheduler"),  # StableUnCLIPPipeline
    ("text_encoder", "tokenizer", "prior_scheduler"),  # UnCLIPPipeline
    ("text_encoder", "tokenizer", "scheduler"),  # KandinskyV22PriorPipeline
)
SCHEDULER: Json = {
    "_class_name": "UnCLIPScheduler",
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "prediction_type": "sample",
    "beta_schedule": "squaredcos_cap_v2",
}


# how schedulers spread timesteps, by their names, where their settings don't say it
SPACINGS = {"UnCLIPScheduler": "linspace", "DDPMScheduler": "leading"}


@dataclass(frozen=True)
class PriorParts:
    """A prior and the text tower that it reads.

    bound: of what it predicts; None for none. spacing: of its timesteps, linspace, leading or trailing. files: that its
    hash is of.
    """

    prior: Component[PriorConfig]
    text: TextComponent
    bound: float | None = 5.0
    spacing: str = "linspace"
    files: tuple[Path, ...] = ()


def read_prior(folder: Path) -> PriorParts:
    """Open the prior of a folder. Raises ModelFileError naming what is missing or does not fit."""
    texts = small_files(folder)

    def read(path: str) -> Json:
        if path not in texts:
            raise ModelFileError(f"{folder} has no {path}")
        return parsed(texts[path], folder / path)

    config = configs.prior_config_from_json(read("prior/config.json"))
    # a decoder may have a text encoder of its own beside
    places = PLACES[:1] if "prior_text_encoder" in texts.get("model_index.json", "") else PLACES
    found = next((names for names in places if all((folder / name).is_dir() for name in names)), None)
    if found is None:
        wanted = places[0] if len(places) == 1 else PLACES[1]
        raise ModelFileError(f"{folder} has no {', '.join(wanted[:2])} and {wanted[2]} beside the prior")
    encoder, tokenizer, scheduler = found
    said = read(f"{scheduler}/scheduler_config.json")
    for key in ("prediction_type", "beta_schedule"):
        if said.get(key, SCHEDULER[key]) != SCHEDULER[key]:
            raise ModelFileError(f"{folder}: {scheduler} has {key} {said[key]!r}, and not {SCHEDULER[key]!r}")
    kind = said.get("_class_name", "UnCLIPScheduler")
    spacing = (
        said.get("timestep_spacing", SPACINGS.get(kind)) if kind != "UnCLIPScheduler" else SPACINGS[kind]
    )
    if kind not in SPACINGS or spacing not in ("linspace", "leading", "trailing"):
        raise ModelFileError(
            f"{folder}: {scheduler} is {kind} with timestep_spacing {spacing!r}; known are {', '.join(SPACINGS)}, and "
            "linspace, leading and trailing"
        )
    text = text_component(
        configs.clip_text_config_from_json(read(f"{encoder}/config.json")),
        read_weights(folder / encoder)[0],
        {
            path.rpartition("/")[2]: content
            for path, content in texts.items()
            if path.startswith(f"{tokenizer}/")
        },
        {},
        folder / tokenizer,
    )
    if {text.config.width, text.config.projection_dim} != {config.vector_dim}:
        raise ModelFileError(
            f"{folder}: {encoder} gives vectors of {text.config.width} and {text.config.projection_dim}, and the "
            f"prior takes {config.vector_dim}"
        )
    weights, files = read_weights(folder / "prior")
    tensors = {k: v for k, v in weights.items() if k != "causal_attention_mask"}
    bound = float(said.get("clip_sample_range", 1.0)) if said.get("clip_sample", True) else None
    return PriorParts(Component(config, tensors), text, bound, spacing, tuple(files))


def has_prior(folder: Path) -> bool:
    """Return True if a model's folder contains a prior."""
    return (folder / "prior" / "config.json").is_file()


def write_prior(parts: PriorParts, folder: Path, max_shard: int = 10_000_000_000) -> None:
    """Write a prior as diffusers' UnCLIPPipeline has it, without a decoder."""
    c, own = parts.text.config, parts.text.tokenizer
    ids = {"bos_token_id": own.start, "eos_token_id": own.end, "pad_token_id": own.pad}
    text = configs.clip_text_json(c) | ids | {"architectures": ["CLIPTextModelWithProjection"]}
    scheduler = SCHEDULER | {"clip_sample": parts.bound is not None, "clip_sample_range": parts.bound or 1.0}
    if parts.spacing != "linspace":
        scheduler |= {"_class_name": "DDPMScheduler", "timestep_spacing": parts.spacing}
    for path, content in {
        "prior/config.json": configs.prior_json(parts.prior.config),
        "text_encoder/config.json": text,
        "prior_scheduler/scheduler_config.json": scheduler,
    }.items():
        write_text(folder / path, dumped(content))
    for name, content in own.texts().items():
        write_text(folder / "tokenizer" / name, content)
    write_weights(folder / "prior", "diffusion_pytorch_model", parts.prior.tensors, max_shard)
    write_weights(folder / "text_encoder", "model", parts.text.tensors, max_shard)
