"""Converting between the layouts of a model, tensor by tensor: nothing is computed, and nothing is lost."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from inkwash.files import ModelFileError
from inkwash.weights.checkpoint import Checkpoint, Component, assemble, check_component
from inkwash.weights.few_steps import FewSteps, few_steps_of
from inkwash.weights.models.component import (
    AutoencoderHalf,
    component_kind,
    read_component,
    write_component,
)
from inkwash.weights.models.folder import read_folder, write_folder
from inkwash.weights.models.parts import with_part
from inkwash.weights.models.single import check_whole, read_single, write_single
from inkwash.weights.scheduler import PREDICTION_TYPES

P = TypeVar("P", bound=Component[Any])
LAYOUTS = {"single": write_single, "diffusers": write_folder}


@dataclass(frozen=True)
class Report:
    """Number of the networks' tensors, and the names of those that the other layout has no place for."""

    tensors: int
    kept: list[str]


def read_checkpoint(
    path: Path, ema: bool = False, parts: Iterable[Path] = (), variant: str | None = None
) -> Checkpoint:
    """A single file or a folder, with `parts`, networks in files of their own, in the place of its own ones.

    ema: the averaged weights of a single file. variant: such as "fp16", of a folder that has several. Raises
    ModelFileError naming the first thing that is missing or does not fit.
    """
    if ema and not path.is_file():
        raise ModelFileError(f"{path} is a folder; only single files hold averaged weights besides")
    parts = tuple(parts)
    checkpoint = read_single(path, ema, whole=not parts) if path.is_file() else read_folder(path, variant)
    for file in parts:
        try:
            checkpoint = with_part(checkpoint, read_component(file))
        except ModelFileError as error:
            raise ModelFileError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
    try:
        check_whole(checkpoint)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return checkpoint


def few_steps_of_checkpoint(checkpoint: Checkpoint, paths: Iterable[Path]) -> FewSteps | None:
    """A model's distillation, where its tensors, metadata, scheduler or the names of its files say it."""
    guided = checkpoint.unet.config.time_cond_dim is not None
    return few_steps_of(paths, checkpoint.metadata, checkpoint.scheduler, guided)


def convert(source: Path, target: Path, layout: str, dtype: torch.dtype | None = None) -> Report:
    """Write the model or network of `source` in a layout, "single" (safetensors) or "diffusers" (a folder).

    dtype: of the networks as written, by default as they are. What the layout has no place for is kept beside, and
    converting back brings it home. Raises ModelFileError naming the first problem, before anything is written.
    """
    if target.exists() and source.resolve() == target.resolve():
        raise ModelFileError(f"{target} is the model that is read; give another place to write to")
    if component_kind(source):
        part = read_component(source)
        if isinstance(part.config, AutoencoderHalf):
            raise ModelFileError(
                f"{source} is an autoencoder's {part.config.side} alone, which has no layout; use it with --part"
            )
        part = part if dtype is None else in_dtype(part, dtype)
        check_component(part)
        write_component(part, target, layout)
        return Report(len(part.tensors), [])
    checkpoint = read_checkpoint(source)
    if checkpoint.scheduler.get("prediction_type") is None:
        said = PREDICTION_TYPES[assemble(checkpoint).prediction]
        checkpoint = replace(checkpoint, scheduler=checkpoint.scheduler | {"prediction_type": said})
    if dtype is not None:
        checkpoint = cast(checkpoint, dtype)
    for network in checkpoint.networks:
        check_component(network)
    LAYOUTS[layout](checkpoint, target)
    return Report(sum(len(network.tensors) for network in checkpoint.networks), sorted(checkpoint.others))


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The checkpoint with its networks' floating-point tensors in another dtype."""
    c, to = checkpoint, partial(in_dtype, dtype=dtype)
    return replace(
        c,
        unet=to(c.unet),
        autoencoder=to(c.autoencoder),
        text=tuple(map(to, c.text)),
        cond_stage=c.cond_stage and to(c.cond_stage),
    )


def in_dtype(part: P, dtype: torch.dtype) -> P:
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in part.tensors.items()
    }
    return replace(part, tensors=tensors)
