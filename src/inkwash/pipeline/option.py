"""Options, each described once: for Python, the command line, metadata and the documentation. Imports no torch."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

GENERAL, PROMPTS, CONTROL, GUIDANCE, PRIOR, CANVAS, MEMORY = (
    "Parameters",
    "Prompts",
    "Control",
    "Guidance",
    "Priors",
    "Large and endless pictures",
    "Device and memory",
)
NEVER = "never"


def option(
    default: Any,
    help: str,
    *,
    group: str = GENERAL,
    a1111: str | None = None,
    when: str | None = None,
    values: Mapping[Any, str] | None = None,
    flag: str | None = None,
    unset: str | None = None,
    **limits: Any,
) -> Any:
    """A field of a request, described.

    help: what the command line and the documentation say of it. a1111: its name in A1111's text; there it is written
    always, or only where the field `when` has another value than its default; `values` are A1111's names of its
    values. flag: its name on the command line, where it is another one. unset: the command line's own default for a
    field that Python requires or sets differently, in words; the option is then absent unless given.
    """
    extra = {"group": group, "a1111": a1111, "when": when, "values": values, "flag": flag, "unset": unset}
    kept: dict[str, Any] = {key: value for key, value in extra.items() if value is not None}
    return Field(default, description=help, json_schema_extra=kept, **limits)


def extra(field: FieldInfo, key: str) -> Any:
    """The value that `option` was given under `key`, or None."""
    found = field.json_schema_extra
    return found.get(key) if isinstance(found, dict) else None


@dataclass(frozen=True, eq=False)  # by identity, since titles have no hash
class OneOf:
    """A field's value is one of these names. titles: what people call them, where that is something else.

    suffixes: of files' names that it may be as well.
    """

    names: tuple[str, ...]
    titles: Mapping[str, str]
    suffixes: tuple[str, ...] = ()

    def check(self, value: str) -> str:
        if value not in self.names and not value.lower().endswith(self.suffixes or ("\0",)):
            files = f", nor a file that ends in {' '.join(self.suffixes)}" if self.suffixes else ""
            raise ValueError(f"{value!r} is not one of {', '.join(sorted(self.names))}{files}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        titles = {"titles": dict(self.titles)} if self.titles else {}
        return handler(schema) | {"enum": list(self.names)} | titles


def one_of(
    known: Iterable[str], titles: Mapping[str, str] = MappingProxyType({}), suffixes: tuple[str, ...] = ()
) -> OneOf:
    """A field's value is one of these names; its JSON schema lists them, and their titles. suffixes: of files' names that
    it may be as well."""
    return OneOf(tuple(known), titles, suffixes)


def two_numbers(value: Any) -> Any:
    """The two numbers of a text such as 768x512."""
    return re.split("[x,]", value) if isinstance(value, str) else value


def several_numbers(value: Any) -> Any:
    """The numbers of a text such as 999,749,499,249."""
    return value.split(",") if isinstance(value, str) else value


N = TypeVar("N", int, float)


def falling(values: tuple[N, ...]) -> tuple[N, ...]:
    """The numbers, where each is less than the one before."""
    if any(a <= b for a, b in pairwise(values)):
        raise ValueError(f"{','.join(map(str, values))} do not fall; give each once, the largest first")
    return values


Side = Annotated[int, Field(ge=1, le=16384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(two_numbers)]  # width, height
Corner = Annotated[tuple[int, int], BeforeValidator(two_numbers)]  # left, top
Timestep = Annotated[int, Field(ge=0, lt=100_000)]
Timesteps = Annotated[
    tuple[Timestep, ...], BeforeValidator(several_numbers), AfterValidator(falling), Field(min_length=1)
]
Sigma = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sigmas = Annotated[
    tuple[Sigma, ...], BeforeValidator(several_numbers), AfterValidator(falling), Field(min_length=1)
]


def number(value: float) -> str:
    """A number as A1111 writes it: 5 rather than 5.0."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)


def a1111_value(field: FieldInfo, value: Any) -> object:
    """A value as A1111 writes it."""
    if names := extra(field, "values"):
        return names.get(value) or (PurePath(value).stem if isinstance(value, str) else None)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        return "x".join(map(str, value))
    return "; ".join(map(str, value)) if isinstance(value, tuple) else value
