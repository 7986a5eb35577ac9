"""Options of how a model is opened and run, as the command line takes them."""

import inspect
import re
from collections import Counter
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inkwash.cli.converters import GROUPS
from inkwash.cli.fields import keyword
from inkwash.pipeline.loading import MemoryFields, PlaceFields, WeightFields
from inkwash.pipeline.option import PROMPTS
from inkwash.prompts.tags import written
from inkwash.weights.bytes.paths import shipped_lora

STRENGTH = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))")


def parameter_of(name: str, field: FieldInfo) -> inspect.Parameter:
    """The parameter of a field; choices and paths are the command line's own to check, and to list in its help."""
    found = keyword(name, field)
    if get_origin(field.annotation) is Literal or Path in get_args(field.annotation):
        found = found.replace(annotation=Annotated[field.annotation, *get_args(found.annotation)[1:]])
    return found


def options_of(model: type[BaseModel], *names: str) -> type[Any]:
    """A dataclass of the options that a model's fields describe: of these names, or of all."""
    found = [parameter_of(name, model.model_fields[name]) for name in names or model.model_fields]
    return make_dataclass(
        model.__name__, [(one.name, one.annotation, one.default) for one in found], frozen=True
    )


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryOptions(options_of(MemoryFields)):
    """Options of running the networks; no part of a picture's recipe."""


@Parameter(name="*")
@dataclass(frozen=True)
class FolderOptions(options_of(PlaceFields)):
    """Places of the files that prompts name; each can be given several times."""

    lora: Annotated[
        tuple[str, ...],
        Parameter(
            group=GROUPS[PROMPTS],
            consume_multiple=False,
            negative="",
            help="PATH[:STRENGTH] of a LoRA, or a shipped one's name; puts its tag in the prompt.",
        ),
    ] = ()

    @property
    def files(self) -> list[tuple[Path, str]]:
        """The files of --lora, and their strengths."""
        found = [(given, STRENGTH.fullmatch(given)) for given in self.lora]
        pairs = [(m[1], m[2]) if m and not Path(given).exists() else (given, "1") for given, m in found]
        return [(shipped_lora(name) or Path(name), strength) for name, strength in pairs]

    @property
    def tags(self) -> str:
        """The tags that put the files of --lora into a prompt."""
        stems = Counter(path.stem for path, _ in self.files)
        names = [
            path.stem if stems[path.stem] == 1 else path.with_suffix("").as_posix() for path, _ in self.files
        ]
        pairs = zip(names, self.files, strict=True)
        return "".join(f"<lora:{written(name)}:{strength}>" for name, (_, strength) in pairs)

    def places(self) -> dict[str, Any]:
        """The keywords of `inkwash.load`; files that are given themselves come first."""
        places = {name: getattr(self, name) for name in PlaceFields.model_fields}
        return places | {"loras": (*(path for path, _ in self.files), *places["loras"])}


@Parameter(name="*")
@dataclass(frozen=True)
class LoadOptions(FolderOptions, MemoryOptions, options_of(WeightFields)):
    """All options of how a model is opened."""

    def how(self) -> dict[str, Any]:
        """The keywords of `inkwash.load` but the model and the places."""
        known = {*WeightFields.model_fields, *MemoryFields.model_fields} - {"model"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name in known}


@Parameter(name="*")
@dataclass(frozen=True)
class WeightOptions(options_of(WeightFields, "variant", "offline", "dtype", "int8", "parts")):
    """Options of opening a model that is measured."""


DEFAULTS = LoadOptions()
