"""The verbs that draw, made from the table of tasks: their options are the fields of the tasks' requests."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.converters import whole
from inkwash.cli.fields import fields_of, parameter
from inkwash.cli.many import draw_lines
from inkwash.cli.output import draw_and_save, draw_and_save_cascade, draw_and_save_grid, drawing
from inkwash.pipeline.option import extra
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import TASKS, Task

if TYPE_CHECKING:
    from PIL.Image import Image

ROLES = {
    "image": "A picture, of any format that Pillow reads.",
    "mask": "A picture of the same size, white where to draw.",
    "labels": "A picture with a palette, or grey: a pixel's value is its label.",
}
# options of one verb that are no fields of its request
Extra = tuple[Any, Any, str]  # type, default, help
EXTRAS: dict[str, dict[str, Extra]] = {
    "generate": {
        "grid": (
            list[str] | None,
            None,
            "One or two axes, as steps=10,20 cfg_scale=3,7: a labelled sheet of a picture for each.",
        ),
        "cascade": (
            list[str] | None,
            None,
            "Models that enlarge what --model draws, one after the other, such as DeepFloyd IF's.",
        ),
        "from_file": (
            Path | None,
            None,
            "A text file with a prompt on each line, in place of PROMPT: a picture of each, into the folder --output. "
            "The same command again goes on where it ended.",
        ),
        "ray": (
            Annotated[int, Parameter(converter=whole)],
            0,
            "With --from-file: workers of a Ray cluster that draw; each has a GPU by --device cuda.",
        ),
    },
    "depth": {
        "depth": (Path | None, None, "A picture of its depth, lighter where nearer."),
        "depth_model": (Path | None, None, "A folder of a network that estimates it, such as MiDaS's."),
    },
    "upscale": {"upscaler": (Path | None, None, "FILE of a pixel upscaler, in place of --model.")},
    "vary": {"second": (Path | None, None, "A second picture, to draw what lies between the two.")},
    "layout": {
        "categories": (
            Path | None,
            None,
            "A text file whose line n, from 0 on, is the name of category n.",
        )
    },
}


def signature_of(task: Task) -> inspect.Signature:
    """A verb's signature: pictures, the prompt, the fields, and how the model is opened."""
    positional = inspect.Parameter.POSITIONAL_ONLY
    extras = EXTRAS.get(task.verb, {})
    found = [
        parameter(role, Annotated[Path, Parameter(help=ROLES[role])], kind=positional)
        for role in task.images
        if role not in extras
    ]
    prompt = task.request.model_fields["prompt"]
    if task.verb != "semantic":
        needed = prompt.is_required() and not extra(prompt, "unset")
        kind, default = (str | None, None) if "from_file" in extras else (str, "")
        about = Annotated[kind, Parameter(help=prompt.description)]
        needed = needed and default is not None
        found.append(parameter("prompt", about, inspect.Parameter.empty if needed else default, positional))
    found += fields_of(task.request)
    for name, (kind, default, help) in extras.items():
        many = list[str] in get_args(kind)
        how = Parameter(help=help, negative="", consume_multiple=True) if many else Parameter(help=help)
        found.append(parameter(name, Annotated[kind, how], default))
    found += [
        parameter("loading", options.LoadOptions, options.DEFAULTS),
        parameter("output", options.Output, None),
        parameter("as_json", options.AsJson, False),
    ]
    return inspect.Signature(found)


def verb(task: Task) -> Callable[..., None]:
    """The command of a task."""
    signature = signature_of(task)

    def run(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        draw(task, bound.arguments)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = task.verb, f"{task.summary}\n\n{task.details}".strip()
    return run


def draw(task: Task, given: Mapping[str, Any]) -> None:
    """Check what was given, draw, and print the paths."""
    loading, output, as_json = given["loading"], given["output"], given["as_json"]
    values = {name: value for name, value in given.items() if name in task.request.model_fields}
    if task.verb == "depth" and (given["depth"] is None) == (given["depth_model"] is None):
        raise options.usage_error("give --depth, a picture, or --depth-model, a folder, and not both")
    file, workers = given.get("from_file"), given.get("ray", 0)
    if "from_file" in given:
        check_source(values["prompt"], file, workers, given["grid"] or given["cascade"])
        values["prompt"] = values["prompt"] or ""
    if "boxes" in values:
        values["boxes"] = read_boxes(values["boxes"], given["categories"])
    if upscaler := given.get("upscaler"):  # which draws nothing by chance
        loading, values["seed"] = replace(loading, model=str(upscaler)), values["seed"] or 0
        output = output or given["image"].with_name(f"{given['image'].stem}-upscaled.png")
    request, announced = options.make_request(task.request, values, loading)
    images = {
        role: options.open_image(given[role], mode) for role, mode in task.images.items() if given[role]
    }
    request = options.with_controls(request, images.get("image"), bool(loading.prior))
    if given.get("depth_model"):
        images["depth"] = estimated(images["image"], given["depth_model"])
    if given.get("cascade"):
        assert isinstance(request, TextToImageRequest)
        if given["grid"] or request.hires > 1:
            raise options.usage_error("--cascade goes without --grid and --hires")
        return draw_and_save_cascade(request, loading, given["cascade"], output, as_json, announced)
    if file:
        assert isinstance(request, TextToImageRequest)
        return draw_lines(request, loading, file, output, workers, values["seed"], as_json)
    if given.get("grid"):
        assert isinstance(request, TextToImageRequest)
        return draw_and_save_grid(request, loading, given["grid"], output, as_json, announced)
    draw_and_save(request, loading, output, as_json, drawing(request, **images), announced=announced)


def check_source(prompt: str | None, file: Path | None, workers: int, other: list[str] | None) -> None:
    """Check the source of prompts. Raises CommandError unless there is one, with the options that belong to it."""
    if (prompt is None) == (file is None):
        raise options.usage_error("give PROMPT, or --from-file FILE in its place")
    if file and other:
        raise options.usage_error(
            "--from-file draws a picture of each line, and goes without --grid and --cascade"
        )
    if workers and (not file or not 0 < workers <= 10_000):
        raise options.usage_error(f"--ray {workers}: 1 to 10000 workers, for --from-file")
    if workers:
        options.connect_cluster()


def read_boxes(texts: tuple[str, ...], categories: Path | None) -> tuple[Any, ...]:
    """The boxes of --box, with their numbers where a file names the categories."""
    from inkwash.pipeline.boxes import number_by_name, read_box

    with options.checking():
        boxes = tuple(read_box(text) for text in texts)
        return number_by_name(options.read_lines(categories), boxes) if categories else boxes


def estimated(image: "Image", folder: Path) -> "Image":
    """The depth of a picture by the network in a folder."""
    from inkwash.pipeline.tasks.depth import estimate_depth

    with options.opening():
        return estimate_depth(image, folder)


VERBS = {task.verb: verb(task) for task in TASKS.values()}


def __getattr__(name: str) -> Callable[..., None]:
    """A verb by its name."""
    try:
        return VERBS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
