"""A low-rank adapter that learns."""

from contextlib import AbstractContextManager
from pathlib import Path

from inkwash.adapters.names import Target, kohya_names
from inkwash.adapters.trainable import TrainableLoRA, layers
from inkwash.adapters.writing import write_adapter
from inkwash.pipeline.api import Pipeline
from inkwash.training.config_methods import LoRAConfig
from inkwash.training.trainable import Learner, Trainable, Weights
from inkwash.weights.bytes.paths import nearest
from inkwash.weights.checkpoint import DTYPES


class LoRALearner(Learner):
    """An adapter that learns by itself."""

    name = "lora"

    def __init__(self, lora: TrainableLoRA):
        self.module: TrainableLoRA = lora

    def attached(self) -> AbstractContextManager[object]:
        return self.module.attached()


class LoRATrainable(LoRALearner, Trainable):
    """An adapter as a config describes it. Raises ValueError for a kind, rank or target that does not fit the model, and
    ModelFileError for a model whose layers have no names in files of LoRAs."""

    def __init__(self, model: Pipeline, config: LoRAConfig):
        self.model, self.config = model, config
        kohya_names(model)  # which some U-Nets have none of: said now, not when it is written
        self.changes_text = config.text_lr > 0
        parts = ("unet", "text_encoder", "text_encoder_2") if self.changes_text else ("unet",)
        lora = TrainableLoRA(
            model,
            config.rank,
            config.alpha,
            config.targets,
            config.seed,
            config.kind,
            config.conv_rank,
            self.rank_of,
            config.factor,
            config.compensated,
            parts,
            config.conv_alpha,
            self.alpha_of,
        )
        super().__init__(lora)
        paths = [".".join(target) for target in layers(model)]
        for option in ("rank_of", "alpha_of", "lr_of"):
            for part, _ in pairs(getattr(config, option)):
                if not any(part in path for path in paths):
                    known = {name for path in paths for name in path.split(".") if not name.isdecimal()}
                    raise ValueError(f"{option} {part!r} is in no layer's path{nearest(part, known)}")

    def rank_of(self, target: Target) -> int | None:
        found = last_of(self.config.rank_of, target)
        return None if found is None else int(found)

    def alpha_of(self, target: Target) -> float | None:
        return last_of(self.config.alpha_of, target)

    def rate_factor(self, parameter: str) -> float:
        target = self.module.targets[parameter.partition(".")[2].partition(":")[0]]
        factor = 1.0 if target.part == "unet" else self.config.text_lr / self.config.lr
        for part, number in pairs(self.config.lr_of):
            factor *= number if part in ".".join(target) else 1.0
        return factor

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        path, c = folder / f"{folder.name}.safetensors", self.config
        adapter = self.module.with_tensors(weights)
        write_adapter(path, adapter, self.model, c.names, DTYPES[c.save_dtype], metadata)
        return path


def last_of(texts: tuple[str, ...], target: Target) -> float | None:
    """The number of the last part that is in a target's path; None where none is."""
    found = [number for part, number in pairs(texts) if part in ".".join(target)]
    return found[-1] if found else None


def pairs(texts: tuple[str, ...]) -> list[tuple[str, float]]:
    """Parts of paths with their numbers."""
    return [(part, float(number)) for part, _, number in (text.rpartition("=") for text in texts)]
