"""Options of the command line, made from the fields of requests."""

import inspect
from collections.abc import Callable, Container
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter
from pydantic.fields import FieldInfo

from inkwash.cli.converters import GROUPS, whole
from inkwash.pipeline.option import extra
from inkwash.pipeline.request import Request


def written(annotation: Any) -> Any:
    """The type of an option as the command line reads it; the request checks the rest."""
    if get_origin(annotation) is Annotated:
        return written(get_args(annotation)[0])
    kinds = {annotation, *get_args(annotation)} - {NoneType}
    if annotation is bool:
        return bool
    for kind in (int, float):
        if kind in kinds and get_origin(annotation) is not tuple:
            return kind
    return tuple[str, ...] if get_origin(annotation) is tuple and Ellipsis in kinds else str


def keyword(name: str, field: FieldInfo) -> inspect.Parameter:
    """The command line's parameter of a field."""
    kind, help, default = written(field.annotation), str(field.description), field.default
    many = get_origin(kind) is tuple
    if unset := extra(field, "unset"):
        help, default = f"{help}; default: {unset}.", None
    elif field.is_required():
        default = inspect.Parameter.empty
    elif isinstance(default, tuple) and not many:
        default = ",".join(map(str, default))
    settings: dict[str, Any] = {"name": f"--{(extra(field, 'flag') or name).replace('_', '-')}", "help": help}
    if (group := extra(field, "group")) in GROUPS:
        settings["group"] = GROUPS[group]
    if kind is int:
        settings["converter"] = whole
    if many:
        settings["consume_multiple"] = False
    if many or (kind is bool and default is False):
        settings["negative"] = ""
    how = Parameter(**settings)
    return parameter(name, Annotated[kind if default is not None else kind | None, how], default)


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty, kind: Any = None):
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY if kind is None else kind, default=default, annotation=annotation
    )


def fields_of(request: type[Request], without: Container[str] = ("prompt",)) -> list[inspect.Parameter]:
    """The parameters of a request's fields, required ones first."""
    found = [keyword(name, field) for name, field in request.model_fields.items() if name not in without]
    order = list(GROUPS)
    place = {
        name: order.index(group) if (group := extra(field, "group")) in order else -1
        for name, field in request.model_fields.items()
    }
    return sorted(found, key=lambda one: place[one.name])


def with_fields(
    request: type[Request], *without: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the command's **values are the fields of a request."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        found = [*own, *fields_of(request, without)]
        command.__signature__ = signature.replace(parameters=found)  # type: ignore[attr-defined]
        return command

    return decorate
