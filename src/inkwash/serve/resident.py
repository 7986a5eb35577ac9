"""The models that a process keeps open: as many as a budget of memory takes, the longest unused leave first."""

import ctypes
import gc
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import inkwash
from inkwash.pipeline.api import Pipeline, networks_of
from inkwash.pipeline.names import BY_PRIOR
from inkwash.pipeline.prior import open_prior
from inkwash.pipeline.upscaler import Upscaler, open_upscaler
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.kinds import kind_of
from inkwash.weights.models.convert import read_checkpoint
from inkwash.weights.names.wrappers import read_model_file


class Residents:
    """Open models by their sources. load: keywords of `inkwash.load`. budget: bytes of weights, None one model alone."""

    def __init__(self, load: Mapping[str, Any], budget: int | None):
        self.load, self.budget = load, budget
        self.models: OrderedDict[str, Pipeline] = OrderedDict()
        self.imagining: tuple[Pipeline, Pipeline] | None = (
            None  # a model, and the same with the server's prior
        )

    @property
    def names(self) -> list[str]:
        """The sources of the open models, least recently used first."""
        return list(self.models)

    def open(self, source: str) -> Pipeline:
        """A model, opened where it is not yet. Raises ModelFileError."""
        if source in self.models:
            self.models.move_to_end(source)
            return self.models[source]
        if self.budget is None:
            self.leave(0)
        load = dict(self.load)
        if load.get("prior") and read_checkpoint(model_path(source)).inputs.needed not in BY_PRIOR:
            load.pop("prior")  # which is for the others
        try:
            made = inkwash.load(source, **load)
        except (MemoryError, torch.OutOfMemoryError):
            self.leave(0)
            made = inkwash.load(source, **load)
        if self.budget is not None:
            self.leave(self.budget - size_of(made))
        self.models[source] = made
        return made

    def open_for(self, task: str, source: str, by_prior: bool = False) -> Pipeline | Upscaler:
        """A task's model, or for upscale also a pixel upscaler, which does not stay open. Raises ModelFileError.

        by_prior: whether a prior, if the server has one, is to make what an IP-Adapter sees.
        """
        path = Path(source)
        if task == "upscale" and path.is_file() and kind_of(read_model_file(path).tensors) == "upscaler":
            return open_upscaler(path, self.load.get("device", "cpu"))
        model = self.open(source)
        return self.with_prior(model) if by_prior and not model.prior and self.load.get("prior") else model

    def with_prior(self, model: Pipeline) -> Pipeline:
        """A model that draws by words, with the server's prior. Of the last one it stays open."""
        if self.imagining is None or self.imagining[0] is not model:
            at = torch.device("cpu") if model.offload else model.device
            prior = open_prior(self.load["prior"], at, model.dtype, self.load.get("offline", False))
            if model.offload:
                model.offload.add([prior.network, prior.text.model])
            self.imagining = model, replace(model, prior=prior)
        return self.imagining[1]

    def used(self) -> int:
        """Bytes of the weights that are open."""
        base, same = self.imagining or (None, None)
        return sum(size_of(same if same and model is base else model) for model in self.models.values())

    def leave(self, budget: int) -> None:
        """Close models until their weights fit."""
        closed = False
        while self.models and self.used() > budget:
            self.models.popitem(last=False)
            self.imagining, closed = None, True
        if closed:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if sys.platform == "linux" and hasattr(allocator := ctypes.CDLL(None), "malloc_trim"):
                allocator.malloc_trim(0)

    def memory(self) -> dict[str, int]:
        """Bytes of the weights that are open, and, of a GPU, what torch has taken of it."""
        used = {"weights": self.used()}
        return used | ({"cuda": torch.cuda.memory_reserved()} if torch.cuda.is_available() else {})


def size_of(model: Pipeline) -> int:
    """Bytes of a model's weights."""
    own = sum(
        parameter.numel() * parameter.element_size()
        for network in networks_of(model, model.prior)
        for parameter in network.parameters()
    )
    return own + (size_of(model.refiner) if isinstance(model.refiner, Pipeline) else 0)
