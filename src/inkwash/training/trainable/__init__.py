"""What learns: a whole network, a low-rank adapter, words of a text encoder, or a hypernetwork."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor, nn

from inkwash.pipeline.api import Pipeline
from inkwash.prompts.conditioning import Reading

Weights = dict[str, Tensor]  # of a module, as it is or averaged


class Trainable:
    """The part of a model that learns, and how it is attached and written.

    name, module: under which its parameters are saved and resumed. changes_text: whether contexts depend on it, so that they
    must be computed in every step.
    """

    name: str
    module: nn.Module
    changes_text = False

    def attached(self) -> AbstractContextManager[object]:
        """Within it the model computes with what learns."""
        return nullcontext()

    def reading(self, reading: Reading) -> Reading:
        """How prompts are read while it is attached."""
        return reading

    def rate_factor(self, parameter: str) -> float:
        """The learning rate of a parameter, as a multiple of the run's."""
        return 1.0

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        """Write the result into the folder of a run, and return its path."""
        raise NotImplementedError

    def for_sampling(self, model: Pipeline, folder: Path) -> Pipeline:
        """The model as sample pictures are drawn with, while it is attached."""
        return model
