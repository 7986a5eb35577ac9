"""Merges as data: a TOML or JSON file, the options of the command line, or what a merged model's metadata say.

dtype = "fp16"
[models]
a = "anime.safetensors"
b = "photo.safetensors"
[[steps]]
method = "weighted_sum"
models = ["a", "b"]
alpha = { base = 0.3, blocks = "GRAD_V" }
[adapters]
style = "style.safetensors"
[[steps]]
method = "bake"
models = ["step1", "style"]
shares = [0.8]
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inkwash.files import ModelFileError
from inkwash.merge.adapters import AdapterFile, AdapterValue, Combined, Difference
from inkwash.merge.baking import Baked
from inkwash.merge.blocks import Parameter, Share, Weights
from inkwash.merge.expression import Merge, Model, Value
from inkwash.merge.importing import from_mecha, from_mergekit, read_plain
from inkwash.merge.modules import Modules
from inkwash.merge.parts import WithVAE
from inkwash.merge.ranks import Size
from inkwash.merge.sources import Source, adapter_source, family_name, open_source
from inkwash.weights.ancestors import MODELS, RECIPE, parsed
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.families import SD1, SDXL
from inkwash.weights.inspect import autov1
from inkwash.weights.models.single import TEXTS

PARAMETERS = ("alpha", "beta", "gamma", "density", "epsilon")
INHERITED = ("modelspec.prediction_type", "modelspec.architecture", "modelspec.resolution", TEXTS)
# of adapters: how they are named and what they are for, and not how they were trained or what is no longer true
KEPT = (
    "ss_base_model_version",
    "ss_v2",
    "ss_sd_",
    "ss_new_sd_",
    "ss_resolution",
    "ss_clip_skip",
    "ss_tag_frequency",
)
KEPT += (
    "modelspec.sai",
    "modelspec.arch",
    "modelspec.impl",
    "modelspec.pred",
    "modelspec.res",
    "modelspec.trigger",
)
BASES = {  # kohya's and modelspec's names of families
    "SD1": ("sd_v1", SD1.architecture),
    "SD2": ("sd_v2", ""),
    "SDXL": ("sdxl_base_v1-0", SDXL.architecture),
}
WANTED = {"bake": "a model, then adapters", "extract_lora": "a tuned model and its base"}
AnyValue = Value | AdapterValue
FROZEN = ConfigDict(frozen=True, extra="forbid")


class Step(Size):
    """One merge. models: names from the recipe's models and adapters, or of steps before this one.

    method: one of METHODS for models; bake, of a model and adapters; extract_lora, of a tuned model and its base; or one of
    COMBINED, of adapters. whole: see `Difference`.
    """

    model_config = FROZEN
    name: str = ""
    method: str
    models: tuple[str, ...]
    alpha: Parameter | None = None
    beta: Parameter | None = None
    gamma: Parameter | None = None
    density: Parameter | None = None
    epsilon: Parameter | None = None
    shares: tuple[Share, ...] = ()
    seed: int = 0
    whole: bool = False

    @property
    def parameters(self) -> dict[str, Weights]:
        return {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}

    def value(self, inputs: tuple[AnyValue, ...], modules: Modules | None) -> AnyValue:
        """The step of these values. Raises ModelFileError where they do not fit it."""
        models = tuple(value for value in inputs if isinstance(value, Value))
        adapters = tuple(value for value in inputs if isinstance(value, AdapterValue))
        given = {
            field for field in Step.model_fields if getattr(self, field) != Step.model_fields[field].default
        }
        takes = {"name", "method", "models"}
        if self.method == "bake" and inputs[:1] == models and adapters:
            made, takes = Baked(models[0], adapters, self.shares), takes | {"shares"}
        elif self.method == "extract_lora" and inputs == models and len(models) == 2 and modules:
            made, takes = (
                Difference(*models, modules, self, self.whole),
                takes | {"whole", *Size.model_fields},
            )
        elif inputs == adapters and inputs and self.method not in WANTED:
            density = self.density or Weights(base=0.5)
            made = Combined(self.method, adapters, self.shares, self, density, self.seed)
            takes |= {"shares", "density", "seed", *Size.model_fields}
        elif self.method in WANTED or adapters:
            raise ModelFileError(
                f"{self.method} takes {WANTED.get(self.method, 'models, and adapters are no such')}"
            )
        else:
            made = Merge(self.method, models, self.parameters, self.shares, self.seed)
            takes |= {"shares", "seed", *PARAMETERS}
        if surplus := given - takes:
            raise ModelFileError(f"{self.method} has no parameter {min(surplus)}")
        return made


class Recipe(BaseModel):
    """A merge of models: the last step is the result.

    models: files, folders or shipped models, by any names. adapters: files of LoRAs and their kin, for the first of the
    models. hashes: sha256 that they must have. ema: those of which the averages are taken. vae: a file whose autoencoder the
    result gets. names: of a result that is an adapter, see `adapter_tensors`.
    """

    model_config = FROZEN
    models: Annotated[dict[str, str], Field(min_length=1)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    vae: str | None = None
    ema: tuple[str, ...] = ()
    adapters: dict[str, str] = {}
    names: Literal["kohya", "peft", "lycoris"] = "kohya"
    hashes: Mapping[str, str] = {}

    @model_validator(mode="after")
    def known(self) -> Self:
        names = {*self.models, *self.adapters}
        if both := self.models.keys() & self.adapters.keys():
            raise ValueError(f"{min(both)!r} is both a model and an adapter")
        for number, step in enumerate(self.steps, 1):
            for model in step.models:
                if model not in names:
                    raise ValueError(
                        f"step {number} takes {model!r}, which is none of {', '.join(sorted(names))}"
                    )
            names.add(step.name or f"step{number}")
        for model in (*self.ema, *self.hashes):
            if model not in self.models and (model in self.ema or model not in self.adapters):
                raise ValueError(f"{model!r} is none of the models {', '.join(sorted(self.models))}")
        return self

    def sources(self, folder: Path = Path()) -> dict[str, Source]:
        """Models and adapters, opened; relative paths are of `folder`. Raises ModelFileError, also for another hash."""
        opened = {}
        for name, path in (self.models | self.adapters).items():
            beside = folder / path
            found = beside if beside.exists() else path
            is_model = name in self.models
            opened[name] = open_source(found, name in self.ema) if is_model else adapter_source(Path(found))
            if (wanted := self.hashes.get(name)) and opened[name].sha256 != wanted:
                raise ModelFileError(f"{path} is not the model that the recipe means: it has another sha256")
        return opened

    def value(self, sources: Mapping[str, Source], folder: Path = Path()) -> AnyValue:
        """The expression. Raises ModelFileError where models, adapters or parameters do not fit together."""
        values: dict[str, AnyValue] = {name: Model(sources[name]) for name in self.models}
        modules = None
        if self.adapters or any(step.method == "extract_lora" for step in self.steps):
            modules = Modules.open(sources[next(iter(self.models))].path)
            values |= {name: AdapterFile.open(sources[name], modules) for name in self.adapters}
        made: AnyValue = next(iter(values.values()))
        for number, step in enumerate(self.steps, 1):
            made = step.value(tuple(values[name] for name in step.models), modules)
            values[step.name or f"step{number}"] = made
        if self.vae is None:
            return made
        if isinstance(made, AdapterValue):
            raise ModelFileError(f"vae {self.vae}: the result is an adapter, which has none")
        beside = folder / self.vae
        return WithVAE.open(made, beside if beside.exists() else Path(self.vae))

    def metadata(
        self, sources: Mapping[str, Source], value: AnyValue, digests: Mapping[str, str]
    ) -> dict[str, str]:
        """Metadata of the result's file: how it was made of which models, and what they were made of in turn.

        digests: the sources' sha256, by name.
        """
        models: dict[str, Any] = {}
        for source in sources.values():
            models |= parsed(source.metadata.get(MODELS))
        for name, source in sources.items():
            models[digests[name]] = {
                "name": source.path.name,
                "legacy_hash": autov1(source.path) if source.path.is_file() else None,
                RECIPE: parsed(source.metadata.get(RECIPE)) or None,
            }
        named = {name: Path(path).name for name, path in self.models.items()}
        adapters = {name: Path(path).name for name, path in self.adapters.items()}
        alone = self.model_copy(update={"models": named, "adapters": adapters, "hashes": dict(digests)})
        recipe = {
            "type": "inkwash",
            "method": self.steps[-1].method,
            "models": list(digests.values()),
            "recipe": alone.model_dump(mode="json", exclude_defaults=True),
        }
        is_model = isinstance(value, Value)
        about = dict(sources[self.leading].metadata if is_model else about_adapter(value))
        kept = {key: about[key] for key in INHERITED if key in about} if is_model else about
        merged_from = [
            source.path.stem for name, source in sources.items() if is_model or name in self.adapters
        ]
        return kept | {
            RECIPE: json.dumps(recipe),
            MODELS: json.dumps(models),
            "modelspec.merged_from": ", ".join(
                merged_from or (source.path.stem for source in sources.values())
            ),
        }

    @property
    def leading(self) -> str:
        """The model whose tensors' names, dtypes and description the result has."""
        first = {step.name or f"step{n}": step.models[0] for n, step in enumerate(self.steps, 1)}
        name = self.steps[-1].models[0]
        while name not in self.models:
            name = first[name]
        return name


def about_adapter(value: AdapterValue) -> dict[str, str]:
    """Metadata that all of an adapter's files share; of a difference of models, their descriptions."""
    metadata = [dict(source.metadata) for source in value.sources()]
    if isinstance(value, Difference):
        base, architecture = BASES.get(family_name(value.base.infos), ("", ""))
        said = {"ss_base_model_version": base, "ss_v2": str(base == "sd_v2") if base else ""}
        said["modelspec.architecture"] = f"{architecture}/lora" if architecture else ""
        return {key: text for key, text in said.items() if text}
    first, *others = metadata
    return {
        key: text
        for key, text in first.items()
        if key.startswith(KEPT) and all(other.get(key) == text for other in others)
    }


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML or JSON file, in one of sd-mecha's or mergekit's, or in a merged model's metadata.

    Raises ModelFileError, in one line, also for what another tool's recipe says and inkwash does not compute.
    """
    try:
        if path.suffix == ".toml":
            fields = tomllib.loads(path.read_text("utf-8"))
        elif path.suffix in (".json", ".yaml", ".yml"):
            fields = read_plain(path)
            fields = (
                from_mergekit(fields) if isinstance(fields, dict) and "merge_method" in fields else fields
            )
        elif path.suffix == ".mecha":
            fields = from_mecha(path.read_text("utf-8"))
        else:
            fields = parsed(read_tensors(path).metadata.get(RECIPE)).get("recipe")
            if not isinstance(fields, dict):
                raise ModelFileError("it has no recipe of inkwash's in its metadata")
    except (tomllib.TOMLDecodeError, ValueError, OSError) as error:
        if isinstance(error, ModelFileError):
            raise ModelFileError(f"{path}: {error}") from error
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
