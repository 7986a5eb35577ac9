"""Metadata of a trained file about its training, under the names that other programs read."""

import json
from pathlib import Path

from inkwash.data.dataset import Dataset
from inkwash.data.examples import Example
from inkwash.pipeline.api import Pipeline
from inkwash.training.config import DiffusionConfig
from inkwash.training.config_methods import LoRAConfig, TextualInversionConfig
from inkwash.training.loop import LoopConfig
from inkwash.weights.families import REFINER, SD1, SDXL

SPEC = {"eps": "epsilon", "v": "v", "x0": "sample"}  # predictions as the model spec names them


def run_metadata(
    c: DiffusionConfig, model: Pipeline, dataset: Dataset, loop: LoopConfig, precision: str
) -> dict[str, str]:
    """kohya's fields and the model spec's, as files of adapters and models hold them."""
    sdxl, v2 = model.sizes > 0, is_v2(model)
    v = "_v" * (model.prediction == "v")
    said = {
        "ss_sd_model_name": model.name,
        "ss_sd_model_hash": model.hash,
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else f"sd_v{1 + v2}{v}" if model.text_encoders else "",
        "ss_v2": v2,
        "ss_steps": loop.num_steps,
        "ss_epoch": round(loop.num_steps * loop.num_micro_batches / dataset.batches_per_epoch),
        "ss_num_train_images": sum(example.repeats for example in dataset.examples),
        "ss_batch_size_per_device": c.batch_size,
        "ss_gradient_accumulation_steps": c.accumulation,
        "ss_learning_rate": c.lr,
        "ss_lr_scheduler": c.lr_schedule,
        "ss_optimizer": c.optimizer,
        "ss_seed": c.seed,
        "ss_mixed_precision": precision,
        "ss_noise_offset": c.noise_offset,
        "ss_min_snr_gamma": c.snr_gamma if c.weighting == "min-snr" else None,
        "ss_clip_skip": c.clip_skip,
        "ss_resolution": str(dataset.rules.resolution),
        "ss_bucket_info": json.dumps({"buckets": bucket_info(dataset)}),
        "ss_tag_frequency": json.dumps({"data": tag_frequency(dataset.examples)}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture(model, c),
        "modelspec.title": Path(c.output).name,
        "modelspec.resolution": "x".join(map(str, dataset.rules.resolution)),
        "modelspec.prediction_type": SPEC.get(model.prediction),
        "modelspec.implementation": "inkwash",
        "inkwash.config": c.model_dump_json(exclude={"output", "data"}),
    }  # fmt: skip
    return {key: str(value) for key, value in said.items() if value is not None and value != ""}


def is_v2(model: Pipeline) -> bool:
    """Return True for a model with Stable Diffusion 2's text encoder."""
    return model.sizes == 0 and model.unet.config.context_dim == 1024 and len(model.text_encoders) == 1


def architecture(model: Pipeline, c: DiffusionConfig) -> str:
    """The model spec's name of what is trained, such as stable-diffusion-v1/lora; empty for what it has no name for."""
    if model.sizes:
        base = (SDXL if model.sizes == SDXL.sizes else REFINER).architecture
    elif not model.text_encoders:
        return ""
    elif is_v2(model):
        base = "stable-diffusion-v2-768-v" if model.prediction == "v" else "stable-diffusion-v2-512"
    else:
        base = SD1.architecture
    if isinstance(c, LoRAConfig) and not getattr(c, "whole", False):
        return f"{base}/lora"
    return f"{base}/textual-inversion" if isinstance(c, TextualInversionConfig) else base


def bucket_info(dataset: Dataset) -> dict[str, dict[str, object]]:
    """The buckets' sizes and numbers of pictures."""
    return {
        str(k): {"resolution": size, "count": len(indices)}
        for k, (size, indices) in enumerate(dataset.buckets.items())
    }


def tag_frequency(examples: list[Example]) -> dict[str, int]:
    """Number of pictures with each tag."""
    counts: dict[str, int] = {}
    for example in examples:
        for tag in {tag.strip() for tag in example.captions[0].split(",")} - {""}:
            counts[tag] = counts.get(tag, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1])[:1000])
