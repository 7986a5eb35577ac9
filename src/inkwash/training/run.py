"""A training run from its config: the model, the data, the trained parameters, the loop, and the result."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inkwash.data.dataset import Dataset
from inkwash.data.examples import Example
from inkwash.metrics.networks import open_network
from inkwash.models.conditions import ClassEmbedder
from inkwash.pipeline.api import Pipeline
from inkwash.prompts.conditioning import Reading
from inkwash.prompts.language import LANGUAGES
from inkwash.training.cached_texts import fill_texts, with_cached_texts
from inkwash.training.checkpointing import checkpoint_activations, swap_blocks
from inkwash.training.checkpoints import States
from inkwash.training.clip_run import prepare_clip
from inkwash.training.conditioning import KEPT, Conditioner
from inkwash.training.config import DiffusionConfig, TrainConfig
from inkwash.training.config_conditions import DesignedConfig, UnconditionalConfig
from inkwash.training.config_methods import DreamBoothConfig, FinetuneConfig
from inkwash.training.distill_config import DistillConfig
from inkwash.training.distillation import frozen_copy
from inkwash.training.distributed import World, join_world, leave_world, whole
from inkwash.training.first_stage_run import prepare_first_stage, prepare_tiny
from inkwash.training.inputs import INPUTS
from inkwash.training.judging import Judge
from inkwash.training.loop import LoopConfig, train
from inkwash.training.metadata import run_metadata
from inkwash.training.methods import METHODS, Method
from inkwash.training.network_run import NetworkRun
from inkwash.training.objectives import Objective
from inkwash.training.pictures import read_data
from inkwash.training.prior_run import prepare_prior
from inkwash.training.settings import (
    OnStep,
    check_folder,
    check_same,
    chosen_precision,
    keep_config,
    loop_config,
    num_steps,
)
from inkwash.training.sharding import check_alike, shard
from inkwash.training.sources import PictureSource
from inkwash.training.start import open_base, write_start
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.tasks.distillation import Distillation
from inkwash.training.tasks.distillations import DISTILLATIONS
from inkwash.training.trainable import Trainable
from inkwash.training.trainable.control import (
    ControlNetTrainable,
    IPAdapterTrainable,
    LLLiteTrainable,
    T2IAdapterTrainable,
)
from inkwash.training.trainable.embedding import EmbeddingTrainable
from inkwash.training.trainable.hypernetwork import HypernetworkTrainable
from inkwash.training.trainable.lora import LoRATrainable
from inkwash.training.trainable.whole import WholeTrainable, from_scratch, told_guidance, widened
from inkwash.training.watching import Watcher, plot_losses

log = logging.getLogger(__name__)
TRAINABLES = {
    "lora": LoRATrainable,
    "whole": WholeTrainable,
    "embedding": EmbeddingTrainable,
    "hypernetwork": HypernetworkTrainable,
    "controlnet": ControlNetTrainable,
    "t2i-adapter": T2IAdapterTrainable,
    "lllite": LLLiteTrainable,
    "ip-adapter": IPAdapterTrainable,
}


NETWORK_RUNS = {
    "autoencoder": prepare_first_stage,
    "tiny-autoencoder": prepare_tiny,
    "clip": prepare_clip,
    "prior": prepare_prior,
}


@dataclass(frozen=True)
class Run:
    """A prepared training run of a diffusion model, before its first step."""

    method: Method
    config: DiffusionConfig
    model: Pipeline
    dataset: Dataset
    held_out: Dataset | None
    trainable: Trainable
    source: PictureSource
    task: DenoisingTask | Distillation
    loop: LoopConfig
    world: World

    @property
    def examples(self) -> list[Example]:
        """All pictures, those that measure too."""
        return self.dataset.examples + (self.held_out.examples if self.held_out else [])

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def precision(self) -> str:
        return self.task.precision

    @property
    def networks(self) -> list[nn.Module]:
        """All that memory holds."""
        own = [self.model.unet, self.model.autoencoder, *(one.model for one in self.model.text_encoders)]
        teacher = [self.task.teacher] if isinstance(self.task, Distillation) else []
        return [*own, *teacher, *self.task.modules.values()]

    def train(self, on_step: OnStep = lambda step, num_steps, logs: None) -> Path | None:
        """Train from where the run stands to its end, and write the result; its path, None if another process writes it.

        on_step: is told of each step that is done, of how many there are, and of its losses.
        """
        folder, c = Path(self.config.output), self.config
        if self.source.latents.folder is not None:
            self.source.fill_cache(self.world)
        prompts = c.sample_prompts or tuple(dict.fromkeys(e.captions[0] for e in self.dataset.examples[:4]))
        prompts = prompts if self.source.inputs is None else ()
        if c.cache_text:
            shown = prompts if c.sample_every else ()
            reading = self.source.conditioner.reading
            fill_texts(self.model, self.examples, reading, shown, self.sample_options(), self.world)
        held_out = self.task.over(self.source.over(self.held_out)) if self.held_out else None
        watcher = Watcher(
            folder, self.model, self.trainable, c.sample_every, prompts, self.sample_options(), held_out,
            c.tensorboard, self.world.is_first, *self.judge(), validate_every=c.sample_every or c.save_every,
            last=self.loop.num_steps, source=self.source if self.source.inputs else None,
        )  # fmt: skip

        def after_step(step: int, logs: Mapping[str, float]) -> dict[str, float]:
            values = watcher(step, logs)
            on_step(step, self.loop.num_steps, {**logs, **values})
            return values

        def on_start(states: States) -> None:
            watcher.emas = states.emas

        emas = train(self.task, self.loop, folder, c.minutes or math.inf, after_step, self.world, on_start)
        weights = {key: whole(value) for key, value in self.trainable.module.state_dict().items()}
        if average := emas.get(self.trainable.name):
            weights |= {key: whole(value) for key, value in average.state_dict().items()}
        if not self.world.is_first:
            return None
        if (folder / "log.jsonl").exists():
            plot_losses(folder / "log.jsonl", folder / "loss.png")
            plot_losses(
                folder / "log.jsonl", folder / "figures.png", title="Fréchet distance", names=("fid",)
            )
        few = self.task.few_steps.written if isinstance(self.task, Distillation) else {}
        said = run_metadata(c, self.model, self.dataset, self.loop, self.task.precision)
        return self.trainable.write(folder, weights, said | few)

    def judge(self) -> tuple[Judge | None, int]:
        """The judge of pictures drawn during the run, and the number of steps between its figures."""
        c = self.config
        if not (isinstance(c, UnconditionalConfig) and c.figures_every and self.world.is_first):
            return None, 0
        weights = Path(c.figures_weights) if c.figures_weights else None
        network = open_network(c.figures_network, weights, c.device)
        size = c.resolution or (self.model.default_size, self.model.default_size)
        return Judge(network, Path(c.figures_of or c.data[0]), c.figures_pictures, size), c.figures_every

    def sample_options(self) -> dict[str, Any]:
        """Options that sample pictures are drawn with."""
        if isinstance(self.task, Distillation):
            return self.task.few_steps.options
        return {"steps": self.config.sample_steps, "cfg_scale": self.config.sample_cfg_scale}


def prepare(method: str, config: TrainConfig, draw: bool = True) -> Run | NetworkRun:
    """Open the model, read the data and build what learns; nothing is trained or written yet.

    draw: missing pictures of DreamBooth's class; for a dry run others stand for them. Raises ValueError, or ModelFileError
    of files, for what does not fit, naming the option.
    """
    about = METHODS[method]
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("tensorboard true needs the package tensorboard: pip install tensorboard")
    if config.threads:
        torch.set_num_threads(config.threads)
    if about.trainable in NETWORK_RUNS:
        return NETWORK_RUNS[about.trainable](about, config)  # type: ignore[arg-type]
    assert isinstance(config, DiffusionConfig)
    return prepare_diffusion(about, config, draw)


def prepare_diffusion(about: Method, c: DiffusionConfig, draw: bool) -> Run:
    """Prepare the training of a diffusion model; see `prepare`."""
    check_folder(Path(c.output))
    world = join_world(c.device, c.parallel == "fsdp")
    if world.sharded and isinstance(c, DistillConfig):
        raise ValueError("parallel fsdp does not go with distill, which trains more than one network")
    if isinstance(c, DesignedConfig) and c.design:
        c = c.model_copy(update={"model": str(started(c, world))})
    whole = about.trainable == "whole" or (isinstance(c, DreamBoothConfig | DistillConfig) and c.whole)
    model = open_base(c, "fp32" if whole else "auto")
    inputs = INPUTS[about.inputs] if about.inputs else None
    if (kind := model.inputs.kind) != "base" and not inputs:
        raise ValueError(f"{model.name} is a model for {kind}, and is trained by that method")
    if model.unet.config.level_embedding:
        raise ValueError(
            f"{model.name} is an upscaler of Imagen's kind, whose noise levels no method here trains"
        )
    data = (
        read_data(c, model, world, inputs.role, draw) if inputs else None
    )  # before the network, which may count classes
    if isinstance(c, FinetuneConfig) and whole:
        classes = inputs.classes(data[0].examples) if inputs and data else None
        model = replace(model, unet=fitted_unet(model, c, inputs and inputs.channels(model), classes))
    if isinstance(c, DistillConfig):
        note_teacher(model, c)
    teacher = frozen_copy(model.unet) if isinstance(c, DistillConfig) else None
    if isinstance(c, DistillConfig) and c.guidance_input:
        if model.unet.config.time_cond_dim is not None:
            raise ValueError(f"{model.name} sees the guidance scale as it is; leave guidance_input out")
        model = replace(model, unet=told_guidance(model.unet).to(model.device))
    trainable: Trainable = TRAINABLES["whole" if whole else about.trainable](model, c)  # type: ignore[arg-type]
    fit_memory(c, model, trainable, world)
    if isinstance(c, FinetuneConfig) and c.compile:
        if not whole:
            raise ValueError(
                "compile goes with methods that train the U-Net's own weights; give whole, or leave it out"
            )
        model.unet.compile()
    inputs = inputs or trainable.inputs
    dataset, held_out = data or read_data(c, model, world, inputs and inputs.role, draw)
    reading = trainable.reading(Reading(LANGUAGES["plain"], c.clip_skip))
    cache = None if c.cache == "none" else Path(c.output) / "cache" if c.cache == "auto" else Path(c.cache)
    if c.cache_text and cache:
        model = with_cached_texts(model, cache, trainable.changes_text, dataset.examples)
    conditioner = Conditioner(model, reading, trainable.changes_text, 0 if c.cache_text else KEPT)
    cache = None if any(example.random_crop for example in dataset.examples) else cache
    stop = c.on_broken == "stop"
    source = PictureSource(
        model, dataset, conditioner, cache, inputs, c.masked_loss, teacher is not None, stop
    )
    same = {field.name for field in fields(Objective)} & set(type(c).model_fields)
    values: dict[str, Any] = {name: getattr(c, name) for name in same} | {"prediction": model.prediction}
    objective = Objective(**values)
    precision = chosen_precision(c, model.device, sum(p.numel() for p in model.unet.parameters()))
    common = (trainable, source, objective, model.schedule, c.accumulation, precision, world)
    if isinstance(c, DistillConfig) and teacher is not None:
        task = DISTILLATIONS[c.objective](model.unet, teacher, c, *common)
    else:
        task = DenoisingTask(model.unet, *common)
    return Run(
        about,
        c,
        model,
        dataset,
        held_out,
        trainable,
        source,
        task,
        loop_config(c, num_steps(c, dataset.batches_per_epoch), task.precision),
        world,
    )


def note_teacher(model: Pipeline, c: DistillConfig) -> None:
    """Warn of a teacher that was distilled already, where guidance would come on top of its own."""
    few, most = model.few_steps, max(c.guidance)
    if few and model.unet.config.time_cond_dim is None and few.cfg_scale is None and most > 1:
        log.warning(
            "%s has guidance in its weights (%s), and guidance %g would be added to it; give --guidance 1",
            *(model.name, few.why, most),
        )


def fit_memory(c: DiffusionConfig, model: Pipeline, trainable: Trainable, world: World) -> None:
    """Place weights and forget activations as the config wants. Raises ValueError where that does not fit what learns."""
    swapped = swap_blocks(model.unet, c.block_swap) if c.block_swap else ()
    if world.sharded:
        shard(model.unet, world)
        check_alike(trainable.module)
    if c.gradient_checkpointing:
        checkpoint_activations(model.unet, without=swapped)
        for encoder in model.text_encoders:
            checkpoint_activations(encoder.model)


def started(c: DesignedConfig, world: World) -> Path:
    """The new model, which the first process writes."""
    if not world.is_first:
        world.wait()
    path = write_start(c, Path(c.output))
    if world.is_first:
        world.wait()
    return path


def run(
    method: str, config: TrainConfig, on_step: OnStep = lambda step, num_steps, logs: None
) -> Path | None:
    """Train by a method, and return the result's path. on_step: see `Run.train`. Raises as `prepare` and the loop do."""
    try:
        prepared = prepare(method, config)
        folder = Path(config.output)
        if prepared.world.is_first:
            check_same(folder, method, config, prepared.world.size)
            keep_config(folder, method, config, prepared.world.size)
        return prepared.train(on_step)
    finally:
        leave_world()


def fitted_unet(model: Pipeline, config: FinetuneConfig, channels: int | None, classes: int | None):
    """The U-Net to train: with as many more input channels, and classes, as its inputs need, or random."""
    unet, c = model.unet, model.unet.config
    have = sum(each.num for each in model.inputs.channels)
    if isinstance(model.cond_stage, ClassEmbedder) or not model.text_encoders or have:
        classes = c.num_classes  # it is told classes otherwise, or not
    if channels is not None and have == 0 and (channels or classes != c.num_classes):
        if c.num_classes is not None and classes != c.num_classes:
            raise ValueError(f"{model.name} knows {c.num_classes} classes; the data want {classes}")
        unet = widened(unet, channels, classes)
    elif channels is not None and have != channels:
        raise ValueError(f"{model.name} sees {have} channels beside the latent; this method needs {channels}")
    if config.from_scratch:
        unet = from_scratch(unet, config.seed)
    return unet.to(model.device)


def trained(method: str, **options: object) -> Path | None:
    """Train from Python: `trained("lora", data="pictures", output="run")`; the options are the command line's.

    Returns the result's path. Raises pydantic's ValidationError, a ValueError, for options that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    return run(method, METHODS[method].config.model_validate(options))
