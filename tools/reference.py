"""Write docs/reference/options.md, the tasks and all options, from the table of tasks and the fields of their requests."""

from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from inkwash.cli.loading import LoadOptions
from inkwash.pipeline.loading import MemoryFields, PlaceFields, WeightFields
from inkwash.pipeline.option import GENERAL, extra, number
from inkwash.pipeline.tasks import INPUTS, TASKS

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
HEAD = """# Tasks and options

Written by `make reference` from the table of tasks and the options' descriptions; do not edit. In Python an option has the
same name with underscores (`--cfg-scale` is `cfg_scale=`), but for the flags named in brackets.
"""
POSITIONAL = ("prompt", "boxes")
Row = tuple[str, str, str, str]  # option, meaning, default, verbs


def cell(text: object) -> str:
    """A text inside a table of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("__", "\\_\\_")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def flag_of(name: str, default: object, flag: str | None) -> str:
    """An option as it is typed; one that is on by default by what turns it off."""
    typed = (flag or name).replace("_", "-")
    typed = f"`--no-{typed}`" if default is True else f"`--{typed}`"
    return f"{typed} (`{name}`)" if flag and flag != name else typed


def default_of(default: object) -> str:
    """A default in words."""
    if default is True:
        return "on"
    if default is False:
        return "off"
    if default is None or default in ((), ""):
        return ""
    if isinstance(default, int | float):
        return f"`{number(default)}`"
    return f"`{cell(','.join(map(str, default)) if isinstance(default, tuple) else default)}`"


def field_row(name: str, field: FieldInfo, verbs: list[str]) -> Row:
    """The row of a request's field."""
    default = extra(field, "unset") or (
        "needed" if field.default is PydanticUndefined else default_of(field.default)
    )
    typed = f"`{name.upper()}`" if name == "prompt" else flag_of(name, field.default, extra(field, "flag"))
    shared = "all" if len(verbs) == len(TASKS) else ", ".join(f"`{verb}`" for verb in verbs)
    return typed, cell(field.description), default, shared


def options_by_group() -> dict[str, list[Row]]:
    """The rows of all requests' fields, by the groups of `--help`."""
    groups: dict[str, list[Row]] = {GENERAL: []}
    having: dict[tuple[str, str], list[str]] = {}
    described: dict[tuple[str, str], FieldInfo] = {}
    for task in TASKS.values():
        for name, field in task.request.model_fields.items():
            key = (name, f"{field.description}{field.default}")
            having.setdefault(key, []).append(task.verb)
            described[key] = field
    for (name, _), verbs in having.items():
        field = described[name, _]
        groups.setdefault(extra(field, "group"), []).append(field_row(name, field, verbs))
    return groups


def loading_rows() -> list[list[str]]:
    """The rows of what opens a model, which every verb that draws has."""
    hints: dict[str, Any] = get_type_hints(LoadOptions, include_extras=True)
    described = {**WeightFields.model_fields, **MemoryFields.model_fields, **PlaceFields.model_fields}
    rows = []
    for field in fields(LoadOptions):
        annotation, *notes = get_args(hints[field.name])
        help = next((note.help for note in notes if isinstance(note, Parameter)), "")
        choices = get_args(annotation) if get_origin(annotation) is Literal else ()
        default = None if field.default is MISSING else field.default
        said = cell(help) + (f" One of {', '.join(f'`{each}`' for each in choices)}." if choices else "")
        flag = extra(described[field.name], "flag") if field.name in described else None
        rows.append([flag_of(field.name, default, flag), said, default_of(default)])
    return rows


def source() -> str:
    """The page."""
    tasks = [
        (
            f"`{task.verb}`",
            f"`{task.name}`",
            cell(task.summary),
            ", ".join(f"{role}{' (optional)' if role in task.optional else ''}" for role in task.images),
            cell(INPUTS[task.sees]) if task.sees else "",
        )
        for task in TASKS.values()
    ]
    text = HEAD + "\n## Tasks\n\n"
    text += table(("verb", "method", "what it does", "pictures", "the model must see"), tasks)
    for group, rows in options_by_group().items():
        text += f"\n## {group}\n\n" + table(("option", "meaning", "default", "verbs"), rows)
    heads = ("option", "meaning", "default")
    return text + "\n## Opening a model\n\n" + table(heads, loading_rows())


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(source(), "utf-8")
