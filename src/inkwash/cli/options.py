"""The verbs' common part: options and their checks, output files, opening models, progress."""

import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from inkwash.cli.converters import whole as whole
from inkwash.cli.loading import DEFAULTS as DEFAULTS
from inkwash.cli.loading import LoadOptions
from inkwash.cli.usage import CommandError as CommandError
from inkwash.files import check_writable
from inkwash.pipeline.option import extra
from inkwash.pipeline.record.metadata import image_format

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Request
    from inkwash.pipeline.upscaler import Tile, Upscaler

R = TypeVar("R", bound="Request")


def usage_error(message: object) -> CommandError:
    return CommandError(str(message), 2)


def file_error(message: object) -> CommandError:
    return CommandError(str(message), 1)


Prompt = Annotated[str, Parameter(help="What to draw. May be empty.")]
Output = Annotated[
    Path | None,
    Parameter(help="PNG, JPEG or WebP. A batch adds -1, -2 and so on; default: named by prompt and seed."),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]


def make_request(kind: type[R], values: dict[str, Any], loading: LoadOptions) -> tuple[R, list[str]]:
    """The checked request, with random seeds where none are given, and the names of those seeds."""
    for name in ("prompt", "negative_prompt"):
        text = values.get(name, "")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that Python couldn't read
            raise usage_error(f"{flag(name)} {text!r} is not valid {sys.getfilesystemencoding()} text")
    if loading.lora and values["prompt_language"] == "plain":
        raise usage_error("--lora needs a --prompt-language that has tags; plain has none")
    values = values | {"prompt": values.get("prompt", "") + loading.tags}
    drawn = [name for name in ("seed", "variation_seed") if values[name] is None]
    if "seed" in drawn:
        values["seed"] = secrets.randbelow(2**31)
    if "variation_seed" in drawn:
        # 0 where nothing uses it, so that the same request is the same file
        values["variation_seed"] = secrets.randbelow(2**31) if values["variation_strength"] else 0
    # what is not given is the request's own default, or its preset's
    own = {name for name, field in kind.model_fields.items() if extra(field, "unset")}
    values = {name: value for name, value in values.items() if value is not None or name not in own}
    with checking():
        return kind.model_validate(values), drawn


@contextmanager
def checking() -> Iterator[None]:
    """Turn a request's validation errors into messages of one line each."""
    from pydantic import ValidationError

    from inkwash.pipeline.problems import describe, own

    try:
        yield
    except ValidationError as error:
        raise usage_error("\n".join(describe(problem, flag) for problem in own(error.errors()))) from None
    except ValueError as error:
        raise usage_error(error) from None


def announce_seeds(request: "Request", drawn: Sequence[str]) -> None:
    """Print the seeds that were drawn."""
    if "seed" in drawn:
        print(f"seed {request.seed}", file=sys.stderr)
    if "variation_seed" in drawn and request.variation_strength:
        print(f"variation seed {request.variation_seed}", file=sys.stderr)


def flag(name: str) -> str:
    names = {
        "prompt": "PROMPT",
        "boxes": "--box",
        "styles": "--style",
        "controls": "--control",
        "regions": "--region",
    }
    names |= {"shares": "--share", "rules": "--rule", "components": "--component"}
    return names.get(name) or f"--{name.replace('_', '-')}"


def check_output(path: Path) -> None:
    """Check before minutes of sampling that `path` can be written; raise CommandError otherwise."""
    try:
        image_format(path)
    except ValueError as error:
        raise usage_error(f"--output {error}") from None
    if not path.parent.is_dir():
        raise file_error(f"--output {path}: there is no folder {path.parent}")
    try:
        check_writable(path)
    except OSError as error:
        raise file_error(f"--output {path}: {error.strerror}") from None


def open_image(path: Path, mode: str = "RGB") -> "Image":
    from inkwash.pipeline.images import open_picture

    try:
        return open_picture(path, mode)
    except ValueError as error:
        raise file_error(error) from error


def with_controls(request: R, image: "Image | None", has_prior: bool) -> R:
    """The request with the pictures of its controls opened. image, has_prior: as of `with_pictures`."""
    if not request.controls:
        return request
    from inkwash.pipeline.denoising.control import with_pictures

    try:
        return with_pictures(request, image, has_prior)
    except ValueError as error:
        raise file_error(error) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file."""
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise file_error(f"{path} is not text in UTF-8: {error}") from error


def free_path(prompt: str, ending: str) -> Path:
    """A file name from the prompt that is not taken in the current folder."""
    slug = re.sub(r"\W+", "-", prompt.lower())[:48].strip("-") or "image"
    path = Path(f"{slug}-{ending}")
    tries = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    while path.exists():
        path = next(tries)
    return path


def open_model(loading: LoadOptions) -> "Model":
    import inkwash

    with opening():
        return inkwash.load(loading.model, **loading.how(), **loading.places())


def connect_cluster() -> None:
    """Connect to a Ray cluster, or say in one line why there is none."""
    try:
        from inkwash.cluster import connect

        connect()
    except ImportError as error:
        raise file_error(f"--ray needs {error.name}; pip install 'inkwash[cluster]'") from None
    except ConnectionError as error:
        raise file_error(str(error).splitlines()[0]) from error


def open_for(task: str, loading: LoadOptions) -> "Model | Upscaler":
    """Open a task's network: a model, and for upscale also a pixel upscaler's file."""
    import torch

    from inkwash.pipeline.upscaler import open_upscaler
    from inkwash.weights.checkpoint import DTYPES
    from inkwash.weights.kinds import kind_of
    from inkwash.weights.names.wrappers import read_model_file

    path = Path(loading.model)
    with opening():
        if task == "upscale" and path.is_file() and kind_of(read_model_file(path).tensors) == "upscaler":
            return open_upscaler(path, loading.device, DTYPES.get(loading.dtype, torch.float32))
    return open_model(loading)


def check_enlarges(name: str, loading: LoadOptions) -> None:
    """Say before anything is drawn that a model of a cascade does not enlarge."""
    from inkwash.weights.bytes.paths import model_path
    from inkwash.weights.models.convert import read_checkpoint

    with opening():
        sees = read_checkpoint(model_path(name, loading.variant, loading.offline)).inputs.needed
    if sees != "upscaler":
        raise usage_error(f"--cascade {name} is not a model that enlarges a picture")


@contextmanager
def opening() -> Iterator[None]:
    """Turn errors in a model's files into one-line messages."""
    from inkwash.files import ModelFileError

    try:
        yield
    except ModelFileError as error:
        raise file_error(error) from error
    except ValueError as error:  # a device that is not there
        raise usage_error(error) from error


@contextmanager
def drawing() -> Iterator[None]:
    """Turn errors in drawing a valid request into one-line messages."""
    import torch

    from inkwash.files import ModelFileError

    try:
        yield
    except ModelFileError as error:  # of what a prompt names
        raise file_error(error) from error
    except FloatingPointError as error:
        raise file_error(error) from error
    except ValueError as error:  # a size that does not fit this model
        raise usage_error(error) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise file_error("not enough memory; draw fewer or smaller pictures") from None
    except RuntimeError as error:  # how torch says it on the CPU
        if "allocate memory" not in str(error):
            raise
        raise file_error("not enough memory; draw fewer or smaller pictures") from None


@contextmanager
def progress(num_steps: int) -> Iterator["Callable[[Step | Tile], None]"]:
    """A bar on stderr that each step or tile moves; nothing where stderr is no terminal."""
    forced = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE")  # as rich understands them
    if not forced and not (sys.stderr and sys.stderr.isatty()):
        yield lambda step: None  # without the import of rich, which takes its time
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sampling", total=num_steps)
        # some samplers take more steps than they were asked for
        yield lambda step: bar.update(
            task, completed=step.index + 1, total=getattr(step, "total", max(num_steps, step.index + 1))
        )
