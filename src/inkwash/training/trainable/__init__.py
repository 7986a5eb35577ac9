"""Trainable parts: a whole network, a low-rank adapter, words of a text encoder, a hypernetwork, or a control."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inkwash.pipeline.api import Pipeline
from inkwash.prompts.conditioning import Reading
from inkwash.training.inputs import Inputs

Weights = dict[str, Tensor]  # of a module, as it is or averaged


class Learner:
    """A trainable part of, or beside, a network. name, module: under which its parameters are saved and resumed."""

    name: str
    module: nn.Module

    def attached(self) -> AbstractContextManager[object]:
        """Attach the trained parameters to the model within the context."""
        return nullcontext()

    def steered(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> AbstractContextManager[dict[str, Any]]:
        """Act on a call of the U-Net within the context, by the batch's inputs; yields the keywords of that call."""
        return nullcontext(cond)

    def rate_factor(self, parameter: str) -> float:
        """The learning rate of a parameter, as a multiple of the run's."""
        return 1.0


class Trainable(Learner, ABC):
    """The part of a model that learns by a method, and how it is written.

    changes_text: whether contexts depend on it, so that they must be computed in every step. inputs: what it sees of each
    picture, if it does.
    """

    changes_text = False
    inputs: Inputs | None = None

    def reading(self, reading: Reading) -> Reading:
        """The reading of prompts while it is attached."""
        return reading

    @abstractmethod
    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        """Write the result into the folder of a run, and return its path."""

    def for_sampling(self, model: Pipeline, folder: Path) -> Pipeline:
        """The model as sample pictures are drawn with, while it is attached."""
        return model
