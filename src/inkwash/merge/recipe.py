"""Merges as data: a TOML or JSON file, the options of the command line, or what a merged model's metadata say.

dtype = "fp16"
[models]
a = "anime.safetensors"
b = "photo.safetensors"
[[steps]]
method = "weighted_sum"
models = ["a", "b"]
alpha = { base = 0.3, blocks = "GRAD_V" }
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inkwash.files import ModelFileError
from inkwash.merge.blocks import Parameter
from inkwash.merge.expression import Merge, Model, Value
from inkwash.merge.parts import WithVAE
from inkwash.merge.sources import Source, open_source
from inkwash.weights.ancestors import MODELS, RECIPE, parsed
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.inspect import autov1
from inkwash.weights.models.single import TEXTS

PARAMETERS = ("alpha", "beta", "gamma", "density", "epsilon")
INHERITED = ("modelspec.prediction_type", "modelspec.architecture", "modelspec.resolution", TEXTS)
FROZEN = ConfigDict(frozen=True, extra="forbid")


class Step(BaseModel):
    """One merge. models: names from the recipe's models, or of steps before this one."""

    model_config = FROZEN
    name: str = ""
    method: str
    models: tuple[str, ...]
    alpha: Parameter | None = None
    beta: Parameter | None = None
    gamma: Parameter | None = None
    density: Parameter | None = None
    epsilon: Parameter | None = None
    shares: tuple[Parameter, ...] = ()
    seed: int = 0


class Recipe(BaseModel):
    """A merge of models: the last step is the result.

    models: files, folders or shipped models, by any names. hashes: sha256 that they must have. ema: those of which the
    averages are taken. vae: a file whose autoencoder the result gets.
    """

    model_config = FROZEN
    models: Annotated[dict[str, str], Field(min_length=1)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    vae: str | None = None
    ema: tuple[str, ...] = ()
    hashes: Mapping[str, str] = {}

    @model_validator(mode="after")
    def known(self) -> Self:
        names = set(self.models)
        for number, step in enumerate(self.steps, 1):
            for model in step.models:
                if model not in names:
                    raise ValueError(
                        f"step {number} takes {model!r}, which is none of {', '.join(sorted(names))}"
                    )
            names.add(step.name or f"step{number}")
        for model in (*self.ema, *self.hashes):
            if model not in self.models:
                raise ValueError(f"{model!r} is none of the models {', '.join(sorted(self.models))}")
        return self

    def sources(self, folder: Path = Path()) -> dict[str, Source]:
        """The models, opened; relative paths are of `folder`. Raises ModelFileError, also for one with another hash."""
        opened = {}
        for name, path in self.models.items():
            beside = folder / path
            opened[name] = open_source(beside if beside.exists() else path, name in self.ema)
            if (wanted := self.hashes.get(name)) and opened[name].sha256 != wanted:
                raise ModelFileError(f"{path} is not the model that the recipe means: it has another sha256")
        return opened

    def value(self, sources: Mapping[str, Source], folder: Path = Path()) -> Value:
        """The expression. Raises ModelFileError where models or parameters do not fit together."""
        values: dict[str, Value] = {name: Model(source) for name, source in sources.items()}
        made: Value = next(iter(values.values()))
        for number, step in enumerate(self.steps, 1):
            given = {name: value for name in PARAMETERS if (value := getattr(step, name)) is not None}
            inputs = tuple(values[name] for name in step.models)
            made = Merge(step.method, inputs, given, step.shares, step.seed)
            values[step.name or f"step{number}"] = made
        if self.vae is None:
            return made
        beside = folder / self.vae
        return WithVAE.open(made, beside if beside.exists() else Path(self.vae))

    def metadata(self, sources: Mapping[str, Source]) -> dict[str, str]:
        """What the result's file says: how it was made of which models, and what they were made of in turn."""
        models: dict[str, Any] = {}
        for source in sources.values():
            models |= parsed(source.metadata.get(MODELS))
        for source in sources.values():
            models[source.sha256] = {
                "name": source.path.name,
                "legacy_hash": autov1(source.path) if source.path.is_file() else None,
                RECIPE: parsed(source.metadata.get(RECIPE)) or None,
            }
        named = {name: Path(path).name for name, path in self.models.items()}
        digests = {name: source.sha256 for name, source in sources.items()}
        alone = self.model_copy(update={"models": named, "hashes": digests})
        recipe = {
            "type": "inkwash",
            "method": self.steps[-1].method,
            "models": list(digests.values()),
            "recipe": alone.model_dump(mode="json", exclude_defaults=True),
        }
        first = sources[self.leading]
        kept = {key: first.metadata[key] for key in INHERITED if key in first.metadata}
        return kept | {
            RECIPE: json.dumps(recipe),
            MODELS: json.dumps(models),
            "modelspec.merged_from": ", ".join(source.path.stem for source in sources.values()),
        }

    @property
    def leading(self) -> str:
        """The model whose tensors' names, dtypes and description the result has."""
        first = {step.name or f"step{n}": step.models[0] for n, step in enumerate(self.steps, 1)}
        name = self.steps[-1].models[0]
        while name not in self.models:
            name = first[name]
        return name


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML or JSON file, or in a merged model's metadata. Raises ModelFileError, in one line."""
    try:
        if path.suffix == ".toml":
            fields = tomllib.loads(path.read_text("utf-8"))
        elif path.suffix == ".json":
            fields = json.loads(path.read_text("utf-8"))
        else:
            fields = parsed(read_tensors(path).metadata.get(RECIPE)).get("recipe")
            if not isinstance(fields, dict):
                raise ModelFileError(f"{path} has no recipe of inkwash's in its metadata")
    except (tomllib.TOMLDecodeError, ValueError, OSError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} can't be read: {error}") from error
    return checked(fields, str(path))


def checked(fields: Any, where: str) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelFileError(
            f"{where}: {place + ': ' * bool(place)}{first['msg'].removeprefix('Value error, ')}"
        ) from error
