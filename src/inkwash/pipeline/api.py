"""Opening a model, and drawing with it: what `inkwash.load` returns."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inkwash.diffusion.denoiser import PREDICTIONS
from inkwash.files import ModelFileError
from inkwash.nn.int8 import in_int8
from inkwash.pipeline.memory.offload import Offload
from inkwash.pipeline.memory.tiling import tiled_if_needed
from inkwash.pipeline.methods import TaskMethods
from inkwash.pipeline.names import BY_PRIOR
from inkwash.pipeline.prior import TextPrior, named, open_prior
from inkwash.pipeline.tasks import TASKS, Task
from inkwash.prompts.folders import Folders
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import DTYPES, Checkpoint, Parts, assemble, chosen_dtype
from inkwash.weights.models.convert import few_steps_of_checkpoint, read_checkpoint
from inkwash.weights.models.prior import has_prior


class Pipeline(TaskMethods):
    """A model with a method for each task of `inkwash.pipeline.tasks.TASKS`."""


def with_all_options(task: Task) -> inspect.Signature:
    """The signature of a task's method with every option and its default, as `help` shows it."""
    short = inspect.signature(getattr(TaskMethods, task.name))
    shown = [p for p in short.parameters.values() if p.kind != p.VAR_KEYWORD]
    shown += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation
        )
        for name, field in task.request.model_fields.items()
        if name not in short.parameters
    ]
    return short.replace(parameters=shown)


for _task in TASKS.values():
    getattr(TaskMethods, _task.name).__signature__ = with_all_options(_task)


def open_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "auto",
    *,
    prediction: str | None = None,
    ema: bool = False,
    parts: Iterable[str | Path] = (),
    variant: str | None = None,
    offline: bool = False,
    refiner: str | Path | None = None,
    prior: str | Path | None = None,
    offload: bool | Offload = False,  # one that is there already takes care of this model too
    vae_tile: int | None = None,
    vae_slicing: bool = False,
    compile: bool = False,
    int8: bool = False,
    folders: Folders = Folders(),
) -> Pipeline:
    """Open a shipped model, a folder or a single file; see `inkwash.load`."""
    check_options(device, dtype, prediction, int8, compile)
    path = model_path(name, variant, offline)
    part_paths = tuple(model_path(part, variant, offline) for part in parts)
    checkpoint = read_checkpoint(path, ema, part_paths, variant)
    few = few_steps_of_checkpoint(checkpoint, [*part_paths, path])
    try:
        built = assemble(
            checkpoint,
            "cpu" if offload else device,
            chosen_dtype(dtype, device, checkpoint),
            prediction or (few.prediction if few else None),
        )
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    home = Offload(device) if offload is True else offload or None
    running: dict[str, Any] = {"offload": home or False, "vae_tile": vae_tile, "vae_slicing": vae_slicing}
    running |= {"compile": compile, "int8": int8}
    after = None
    if refiner:
        running["folders"] = replace(folders, loras=None)  # LoRAs are made for the base
        after = open_model(refiner, device, dtype, variant=variant, offline=offline, **running)
    if int8:
        in_int8(built.unet)
    if compile:  # on a GPU into CUDA graphs, which have no time between kernels
        built.unet.compile(mode="reduce-overhead" if torch.device(device).type == "cuda" else "default")
    own = open_own_prior(prior, path, checkpoint, built, offline)
    if home:
        home.add(networks_of(built, own))
    built = replace(built, autoencoder=tiled_if_needed(built.autoencoder, vae_tile, vae_slicing))
    return Pipeline(
        **vars(built),
        name=named(name, path),
        parts=part_paths,
        refiner=after,
        prior=own,
        few_steps=few,
        offload=home,
        folders=folders,
    )


def check_options(
    device: str | torch.device, dtype: torch.dtype | str, prediction: str | None, int8: bool, compile: bool
) -> None:
    """Check the options of `open_model`; raise ValueError naming the first that is invalid or conflicts with another."""
    if prediction not in (None, *PREDICTIONS):
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    usable(device)
    if int8 and (compile or torch.device(device).type != "cpu"):
        raise ValueError(f"int8 is for drawing on a CPU, without compile, and the device is {device}")
    if not isinstance(dtype, torch.dtype) and dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")


def usable(device: str | torch.device) -> None:
    """Check that a device can be used; raise ValueError otherwise."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch was not built for fails an assertion
        raise ValueError(f"device {str(device)!r} can't be used: {str(error).splitlines()[0]}") from error


def networks_of(built: Parts, prior: TextPrior | None) -> list[nn.Module]:
    """All networks of a model."""
    texts = [text.model for text in (*built.text_encoders, *([prior.text] if prior else []))]
    others = [built.cond_stage, prior.network if prior else None]
    return [built.unet, built.autoencoder, *texts, *(network for network in others if network is not None)]


def open_own_prior(
    name: str | Path | None, path: Path, checkpoint: Checkpoint, built: Parts, offline: bool
) -> TextPrior | None:
    """The prior of a model: the one of this name, or the one that its folder brings, where the model sees vectors.

    A model that draws by words takes one for its IP-Adapters. Raises ValueError for a prior that nothing can use.
    """
    weight = next(built.unet.parameters())
    if name:
        if checkpoint.inputs.needed not in (*BY_PRIOR, None) or not built.unet.config.context_dim:
            raise ValueError(f"prior {name}: {path.stem} sees no vector that a prior makes")
        return open_prior(name, weight.device, weight.dtype, offline)
    if checkpoint.inputs.needed not in BY_PRIOR:
        return None
    return replace(open_prior(path, weight.device, weight.dtype), name="") if has_prior(path) else None
