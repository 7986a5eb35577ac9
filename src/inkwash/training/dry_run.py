"""A dry run: pictures, steps, memory and time of a training before it begins. Two steps are tried, in memory alone."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import nn

from inkwash.data.dataset import Dataset
from inkwash.data.examples import BrokenPicture
from inkwash.data.text_cache import CachedTextEncoder
from inkwash.process import free_memory, peak_memory
from inkwash.training.checkpoints import NEWEST
from inkwash.training.config import CaptionConfig, DataConfig
from inkwash.training.config_methods import DreamBoothConfig
from inkwash.training.distributed import World, local
from inkwash.training.loop import LoopConfig, Task, generator_for, make_states, one_step
from inkwash.training.methods import Method
from inkwash.training.pictures import num_drawn
from inkwash.training.settings import check_same
from inkwash.training.sharding import ABOUT, FOLDERS
from inkwash.training.sources import PictureSource

log = logging.getLogger(__name__)
# bytes that optimizers keep for each weight; Adafactor keeps them for the rows and columns of the last two dimensions
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 4, "muon": 4, "sgd": 4, "prodigy": 16}
LONG = 20.0  # seconds of a step that is not tried twice


class Prepared(Protocol):
    """A prepared training run, of either kind."""

    @property
    def method(self) -> Method: ...
    @property
    def config(self) -> DataConfig: ...
    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def dataset(self) -> Dataset: ...
    @property
    def held_out(self) -> Dataset | None: ...
    @property
    def networks(self) -> Sequence[nn.Module]: ...
    @property
    def task(self) -> Task: ...
    @property
    def loop(self) -> LoopConfig: ...
    @property
    def world(self) -> World: ...


def report(run: Prepared) -> dict[str, Any]:
    """Pictures, buckets, steps, parameters, memory and time of a run, whose weights move: it can't be trained after this.

    seconds_per_step and memory_peak are missing where the memory does not suffice, or several processes share the run.
    Raises ValueError where the output holds a run with another config.
    """
    folder, c, loop = Path(run.config.output), run.config, run.loop
    check_same(folder, run.method.name, c, run.world.size)
    learning, states = states_of(run)
    weights = {id(p): local(p).nbytes for network in run.networks for p in network.parameters()}
    free = free_memory(c.device)
    trial = tried(run) if run.world.size == 1 and (states < free or not free) else {}
    data = run.dataset  # after the trial, which finds broken pictures
    return trial | {
        "method": run.method.name,
        "model": run.name,
        "device": c.device,
        "precision": run.precision,
        "pictures": len(data.examples),
        "broken": data.broken,
        "held_out": len(run.held_out.examples) if run.held_out else 0,
        "without_caption": sum(not any(one.captions) for one in data.examples) if reads_captions(run) else 0,
        "to_be_drawn": max(0, c.class_pictures - num_drawn(c))
        if isinstance(c, DreamBoothConfig) and c.class_prompt
        else 0,
        "sizes": sizes(data),
        "buckets": {f"{w}x{h}": len(indices) for (w, h), indices in data.buckets.items()},
        "steps": loop.num_steps,
        "done": min(saved_step(folder), loop.num_steps),
        "epochs": round(loop.num_steps * loop.num_micro_batches / data.batches_per_epoch, 2),
        "pictures_per_step": data.batch * loop.num_micro_batches,
        "learning_parameters": learning,
        "memory_for_weights_and_states": sum(weights.values()) + states,
        "memory_free": free,
    }


def states_of(run: Prepared) -> tuple[int, int]:
    """The number of parameters that learn, and the bytes of their gradients, averages and the optimizer's states."""
    parameters = [p for module in run.task.modules.values() for p in module.parameters() if p.requires_grad]
    learning = [local(p).numel() for p in parameters]
    kept = sum(
        sum(num // side for side in p.shape[-2:]) if run.loop.optimizer == "adafactor" and p.ndim > 1 else num
        for num, p in zip(learning, parameters, strict=True)
    )
    averages = 4 * sum(learning) * (run.loop.ema_decay is not None)
    gradients = 4 * (max(learning) if run.loop.fused_backward else sum(learning))
    return sum(learning), STATE_BYTES[run.loop.optimizer] * kept + averages + gradients


def reads_captions(run: Prepared) -> bool:
    source = getattr(run.task, "source", None)
    told = not isinstance(source, PictureSource) or bool(source.model.text_encoders)
    return isinstance(run.config, CaptionConfig) and told


def sizes(data: Dataset) -> list[str]:
    """The smallest and the largest size of the pictures; one where they are equal."""
    ordered = sorted((example.size for example in data.examples), key=lambda size: size[0] * size[1])
    return [f"{w}x{h}" for w, h in dict.fromkeys((ordered[0], ordered[-1]))]


def saved_step(folder: Path) -> int:
    """The step after which a run would go on; 0 where there is no state, or none that says so."""
    try:
        if (about := folder / FOLDERS[1] / ABOUT).exists():
            return int(json.loads(about.read_text())["step"])
        with safe_open(folder / NEWEST, "pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return 0


def tried(run: Prepared) -> dict[str, Any]:
    """Take the first step twice; its seconds, those of encoding all pictures once, and the most memory of this process.

    Nothing stays on disk. Of a step's micro-batches one is computed.
    """
    if run.config.on_broken == "skip":
        drop_broken(run.dataset)
    made: dict[str, Any] = {}
    source = getattr(run.task, "source", None)
    with TemporaryDirectory() as folder:
        if isinstance(source, PictureSource):
            made = encoded(run, source, Path(folder))
        loop, states = replace(run.loop, num_micro_batches=1), make_states(run.task, run.loop)
        seconds = 0.0
        for _ in range(2):  # the first one allocates, and measures which kernels are fastest
            begin = time.perf_counter()
            one_step(run.task, loop, 0, states, run.world)
            seconds = time.perf_counter() - begin
            if seconds > LONG:
                break
    made["seconds_per_step"] = seconds * run.loop.num_micro_batches
    return made | {"memory_peak": peak_memory(run.config.device)}


def drop_broken(data: Dataset) -> None:
    """Leave the pictures of the first batch out that can't be decoded, until all of it can."""
    broken = [0]
    while broken:
        broken = []
        for i in sorted(set(data.batch_at(0))):
            try:
                data.examples[i].open()
            except BrokenPicture as error:
                log.warning("passed over: %s", error)
                data.broken.append(str(error))
                broken.append(i)
        data.drop(broken)


def encoded(run: Prepared, source: PictureSource, folder: Path) -> dict[str, float]:
    """Encode the first batch and its captions as the run would, with a folder of its own for what is kept."""
    kept = source.latents.folder is not None
    source.latents.folder = folder if kept else None
    encoders = [one.model for one in source.model.text_encoders]
    cached = [encoder for encoder in encoders if isinstance(encoder, CachedTextEncoder)]
    for encoder in cached:
        encoder.folder = folder
    begin, rows = time.perf_counter(), run.world.rows(run.dataset.batch)
    source.batch(0, generator_for(run.loop.seed, 0), rows)
    seconds = time.perf_counter() - begin
    for encoder in cached:
        encoder.release()
    num = len(set(run.dataset.batch_at(0)[rows]))
    return {"seconds_of_encoding": seconds / num * len(run.dataset.examples)} if kept else {}
