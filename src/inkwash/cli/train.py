"""`inkwash train METHOD`: each method's options, from the command line and a TOML file."""

import inspect
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Group, Parameter
from pydantic.fields import FieldInfo

from inkwash.cli import options
from inkwash.cli.fields import parameter, written
from inkwash.pipeline.option import extra
from inkwash.training.config import DATA, LORA, MODEL, NOISE, OPTIMIZER, STEPS, WATCH
from inkwash.training.distill_config import DISTILLATION
from inkwash.training.imported import ImportedError, read_diffusers_options, read_kohya_config
from inkwash.training.methods import METHODS, Method
from inkwash.weights.bytes.paths import nearest

app = App(
    name="train",
    help="Train a LoRA, a word, a model: METHOD CONFIG.toml, whose keys are the options.",
    help_format="plaintext",
)
GROUPS = {
    name: Group(name, sort_key=k)
    for k, name in enumerate((MODEL, DATA, LORA, DISTILLATION, STEPS, OPTIMIZER, NOISE, WATCH), 1)
}
SHOWN = 12  # buckets in a dry run's report
Config = Annotated[
    Path | None, Parameter(help="A TOML file of options; those of the command line come before it.")
]
PrintConfig = Annotated[bool, Parameter(negative="", help="Print the whole configuration as TOML, and stop.")]
DryRun = Annotated[
    bool, Parameter(negative="", help="Check model and data, say what would be trained, and stop.")
]
Kohya = Annotated[
    Path | None,
    Parameter(help="A config or a dataset's description of kohya's trainer; what can't be taken is said."),
]
Diffusers = Annotated[
    str | None,
    Parameter(
        help="Options of diffusers' training scripts as one text, or a file of them.",
        allow_leading_hyphen=True,
    ),
]


def command(method: Method) -> Callable[..., None]:
    """The command of a method."""
    own = [
        parameter("file", Config, None, inspect.Parameter.POSITIONAL_ONLY),
        parameter("kohya", Kohya, None),
        parameter("diffusers", Diffusers, None),
        parameter("print_config", PrintConfig, False),
        parameter("dry_run", DryRun, False),
        parameter("as_json", options.AsJson, False),
    ]
    fields = [keyword(name, field) for name, field in method.config.model_fields.items()]
    signature = inspect.Signature([*own, *fields])

    def train(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: bound.arguments[name] for name in method.config.model_fields}
        values = imported(bound.arguments["kohya"], bound.arguments["diffusers"], method)
        values |= read_toml(bound.arguments["file"], method) if bound.arguments["file"] else {}
        values |= {name: value for name, value in given.items() if value is not None}
        with options.checking():
            config = method.config.model_validate(values)
        if bound.arguments["print_config"]:
            print(as_toml(method, config.model_dump(mode="json")))
            return
        start(method, config, bound.arguments["dry_run"], bound.arguments["as_json"])

    train.__signature__ = signature  # type: ignore[attr-defined]
    train.__name__, train.__doc__ = method.name, method.summary
    return train


def imported(kohya: Path | None, diffusers: str | None, method: Method) -> dict[str, Any]:
    """The options of other trainers' configurations; what of them can't be taken goes to stderr, a line each."""
    values: dict[str, Any] = {}
    try:
        found = [read_kohya_config(kohya, method)] if kohya else []
        found += [read_diffusers_options(diffusers, method)] if diffusers else []
    except ImportedError as error:
        raise options.usage_error(error) from None
    for one in found:
        values |= one.values
        for line in one.left:
            print(f"not taken: {line}", file=sys.stderr)
    return values


def keyword(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a field; absent unless it is given, since a file may say it."""
    kind, help = written(field.annotation), about(field).rstrip(".")
    if not field.is_required():
        default = extra(field, "unset") or shown(field.default)
        help = f"{help}; default: {default}" if default else help
    settings: dict[str, Any] = {
        "name": f"--{name.replace('_', '-')}",
        "help": f"{help}.",
        "show_default": False,
    }
    settings["group"] = GROUPS[extra(field, "group") or MODEL]
    if isinstance(field.default, tuple) and kind is not str:
        settings["consume_multiple"] = False
    if isinstance(field.default, tuple):
        settings["negative"] = ""
    return parameter(name, Annotated[kind | None, Parameter(**settings)], None)


def about(field: FieldInfo) -> str:
    """An option's description, with the names to choose from where it does not have them."""
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    known = [str(name) for name in names if isinstance(name, str) and name]
    if all(name in str(field.description) for name in known):
        return str(field.description)
    return f"{str(field.description).rstrip('.')}; one of {', '.join(known)}."


def shown(value: object) -> str:
    """A default as it is typed."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_toml(path: Path, method: Method) -> dict[str, Any]:
    """The options of a file. Sections are for the eye: their keys are taken as if they stood at the top."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise options.usage_error(f"{path} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in content.items():
        for name, inner in value.items() if isinstance(value, dict) else [(key, value)]:
            known = method.config.model_fields
            if name not in known:
                raise options.usage_error(
                    f"{path}: {name} {inner!r} is not an option of {method.name}{nearest(name, known)}"
                )
            if name in values:
                raise options.usage_error(f"{path}: {name} stands there twice")
            values[name] = inner
    return values


def as_toml(method: Method, values: Mapping[str, Any]) -> str:
    """A configuration as a file, each option with what it means."""
    lines = [f"# inkwash train {method.name}"]
    fields = method.config.model_fields
    for group in GROUPS:
        own = [name for name in fields if (extra(fields[name], "group") or MODEL) == group]
        if own:
            lines += ["", f"# {group}"]
        for name in own:
            lines.append(f"# {about(fields[name])}")
            # TOML has no null: an option without a value is left out
            lines.append(
                f"{'# ' if values[name] is None else ''}{name} = {json.dumps(values[name], ensure_ascii=False)}"
            )
    return "\n".join(lines)


def start(method: Method, config: Any, dry_run: bool, as_json: bool) -> None:
    """Train, or say what would be trained."""
    from inkwash.process import importing

    with importing():
        from inkwash.training import dry_run as dry
        from inkwash.training import run
        from inkwash.training.distributed import end_joined_process
    with options.drawing():
        if dry_run:
            report = dry.report(run.prepare(method.name, config, draw=False))
            print(json.dumps(report) if as_json else "\n".join(described(report)))
            return
        path = run.run(method.name, config)
    if path is not None:
        print(json.dumps({"output": str(path)}) if as_json else path)
    end_joined_process()


def described(report: Mapping[str, Any]) -> list[str]:
    """A dry run's report as a table of two columns."""
    r, num = report, report["pictures_per_step"]
    notes = {
        "held_out": "held out",
        "without_caption": "without a caption",
        "to_be_drawn": "of the class to be drawn first",
    }
    pictures = [f"{r['pictures']:,} of {' to '.join(r['sizes'])}"]
    pictures += [f"{r[key]:,} {words}" for key, words in notes.items() if r[key]]
    pictures += [f"{len(r['broken'])} broken"] if r["broken"] else []
    buckets = [f"{size} {num}" for size, num in r["buckets"].items()]
    buckets[SHOWN:] = [f"and {len(buckets) - SHOWN} more"] if len(buckets) > SHOWN else []
    done = f"; {r['done']:,} are done" if r["done"] else ""
    rows = [
        ("training", f"{r['method']} of {r['model']}, {r['precision']} on {r['device']}"),
        ("pictures", ", ".join(pictures)),
        ("buckets", ", ".join(buckets)),
        ("steps", f"{r['steps']:,} of {num:,} picture{'s' if num > 1 else ''}, {r['epochs']:g} epochs{done}"),
        ("learning", f"{r['learning_parameters']:,} parameters"),
        ("memory", memory_line(r)),
        ("time", time_line(r)),
        *(("broken", message) for message in r["broken"]),
    ]
    return [f"{name:<9} {text}" for name, text in rows]


def memory_line(r: Mapping[str, Any]) -> str:
    text = f"{gib(r['memory_for_weights_and_states'])} for weights, gradients and the optimizer's states"
    text += f"; {gib(r['memory_peak'])} at most in a step" if "memory_peak" in r else ""
    return text + (f"; {gib(r['memory_free'])} were free before" if r["memory_free"] else "")


def time_line(r: Mapping[str, Any]) -> str:
    if "seconds_per_step" not in r:
        return "not measured, since the memory does not suffice or several processes share the run"
    left = r["steps"] - r["done"]
    text = f"{r['seconds_per_step']:.3g} s a step, {duration(left * r['seconds_per_step'])} for {left:,}"
    encoding = r.get("seconds_of_encoding", 0)
    return text + (f"; {duration(encoding)} to encode the pictures once" if encoding else "")


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


for _method in METHODS.values():
    app.command(command(_method), name=_method.name)
