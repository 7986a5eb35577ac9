"""What the verbs share: options and their checks, output files, opening models, progress."""

import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from inkwash.cli.converters import whole
from inkwash.cli.effects import CanvasOptions, GuidanceOptions, MemoryOptions
from inkwash.cli.wording import PromptOptions
from inkwash.files import check_writable
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES
from inkwash.pipeline.record.metadata import image_format

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Request

R = TypeVar("R", bound="Request")


class CommandError(Exception):
    """What ends a command: a line (or one for each problem) for stderr, and the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def usage_error(message: object) -> CommandError:
    return CommandError(str(message), 2)


def file_error(message: object) -> CommandError:
    return CommandError(str(message), 1)


Prompt = Annotated[str, Parameter(help="What to draw. May be empty.")]
BatchSize = Annotated[
    int, Parameter(converter=whole, help="Pictures to draw, 1 to 64; picture k has the seed plus k.")
]
Output = Annotated[
    Path | None,
    Parameter(help="PNG, JPEG or WebP. A batch adds -1, -2 and so on; default: named by prompt and seed."),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Settings(PromptOptions, GuidanceOptions, CanvasOptions, MemoryOptions):
    """What every verb that draws takes."""

    negative_prompt: Annotated[str, Parameter(help="What to keep away from.")] = ""
    width: Annotated[
        int | None, Parameter(converter=whole, help="Pixels; default: the model's own size.")
    ] = None
    height: Annotated[
        int | None, Parameter(converter=whole, help="Pixels; default: the model's own size.")
    ] = None
    steps: Annotated[int, Parameter(converter=whole, help="Sampling steps, 1 to 500.")] = 20
    cfg_scale: Annotated[float, Parameter(help="How strongly to follow the prompt; 1 is off.")] = 5.0
    sampler: Annotated[str, Parameter(help=f"One of {', '.join(SAMPLER_NAMES)}.")] = "dpmpp_2m"
    schedule: Annotated[str, Parameter(help=f"Of the sigmas; one of {', '.join(SCHEDULE_NAMES)}.")] = (
        "automatic"
    )
    deep_cache: Annotated[
        int,
        Parameter(
            converter=whole, help="Compute the U-Net's depths in every so many steps; 3 is 2 times as fast."
        ),
    ] = 1
    token_merging: Annotated[
        float,
        Parameter(help="Part of the tokens that the largest self-attentions do without, 0 to 0.75."),
    ] = 0.0
    seed: Annotated[
        int | None, Parameter(converter=whole, help="0 to 2^63 - 1; default: random, and printed.")
    ] = None
    variation_strength: Annotated[
        float, Parameter(help="How far the noise goes over to another seed's, 0 to 1.")
    ] = 0.0
    variation_seed: Annotated[
        int | None, Parameter(converter=whole, help="That seed; default: random, and printed.")
    ] = None
    seed_resize_from: Annotated[
        str | None, Parameter(help="A size, as 512x512, whose noise lies in the middle.")
    ] = None
    class_label: Annotated[
        int | None, Parameter(converter=whole, help="What a model of classes draws; PROMPT is then empty.")
    ] = None
    original_size: Annotated[
        str | None, Parameter(help="SDXL: the size that the picture is said to have had, as 1024x768.")
    ] = None
    crop: Annotated[str, Parameter(help="SDXL: where it is said to be cut, left,top.")] = "0,0"
    target_size: Annotated[str | None, Parameter(help="SDXL: the size that is said to be wanted.")] = None
    aesthetic: Annotated[float, Parameter(help="SDXL's refiner: the score to reach, 0 to 10.")] = 6.0
    negative_aesthetic: Annotated[float, Parameter(help="SDXL's refiner: the score to keep away from.")] = 2.5
    model: Annotated[
        str,
        Parameter(help="`mini`, a file, a folder in the diffusers layout, or an id of the Hugging Face hub."),
    ] = "mini"
    variant: Annotated[
        str | None, Parameter(help="Of the weights, where a folder has several, such as fp16.")
    ] = None
    offline: Annotated[bool, Parameter(negative="", help="Take hub ids from the cache alone.")] = False
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Parameter(help="Of the networks; auto is fp32 for small ones, else what the machine is fastest in."),
    ] = "auto"
    int8: Annotated[
        bool, Parameter(negative="", help="The U-Net in eight bits: faster on a CPU, coarser.")
    ] = False
    compile: Annotated[
        bool, Parameter(negative="", help="Compile the U-Net by torch.compile first; for a GPU.")
    ] = False
    part: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            help="A U-Net, autoencoder or text encoder in a file of its own, in place of the model's; repeatable.",
        ),
    ] = ()
    refiner: Annotated[str | None, Parameter(help="A second model, which ends what the first began.")] = None
    refiner_switch_at: Annotated[
        float | None, Parameter(help="The share of the noise levels that the first has; default: 0.8.")
    ] = None
    refiner_strength: Annotated[
        float | None, Parameter(help="Instead: noise the finished picture so much, and refine it.")
    ] = None


DEFAULTS = Settings()


def make_request(kind: type[R], prompt: str, settings: Settings, **more: Any) -> R:
    """The checked request; where there is no seed one is drawn."""
    for name, text in (("prompt", prompt), ("negative_prompt", settings.negative_prompt)):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that Python couldn't read
            raise usage_error(f"{flag(name)} {text!r} is not valid {sys.getfilesystemencoding()} text")
    if settings.lora and settings.prompt_language == "plain":
        raise usage_error("--lora needs a --prompt-language that has tags; plain has none")
    values = {name: value for name, value in vars(settings).items() if name in kind.model_fields}
    values |= settings.wording() | more | {"prompt": prompt + settings.tags}
    if settings.seed is None:
        values["seed"] = secrets.randbelow(2**31)
    if (
        settings.variation_seed is None
    ):  # one that nothing asks for is 0, so that the same request is the same file
        values["variation_seed"] = secrets.randbelow(2**31) if settings.variation_strength else 0
    with checking():
        return kind.model_validate(values)


@contextmanager
def checking() -> Iterator[None]:
    """Turn what a request says no to into one line for each problem."""
    from pydantic import ValidationError

    from inkwash.pipeline.problems import describe

    try:
        yield
    except ValidationError as error:
        raise usage_error("\n".join(describe(problem, flag) for problem in error.errors())) from None
    except ValueError as error:
        raise usage_error(error) from None


def announce_seed(request: "Request", settings: Settings) -> None:
    """Print the seeds that were drawn."""
    if settings.seed is None:
        print(f"seed {request.seed}", file=sys.stderr)
    if settings.variation_seed is None and request.variation_strength:
        print(f"variation seed {request.variation_seed}", file=sys.stderr)


def flag(name: str) -> str:
    return "PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}"


def check_output(path: Path) -> None:
    """Say now what would otherwise be said after minutes of sampling: that `path` can't be written."""
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


def read_lines(path: Path) -> list[str]:
    """The lines of a text file."""
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise file_error(f"{path} is no text in UTF-8: {error}") from error


def free_path(prompt: str, ending: str) -> Path:
    """A file name from the prompt that is not taken in the current folder."""
    slug = re.sub(r"\W+", "-", prompt.lower())[:48].strip("-") or "image"
    path = Path(f"{slug}-{ending}")
    tries = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    while path.exists():
        path = next(tries)
    return path


def open_model(settings: Settings) -> "Model":
    import inkwash

    with opening():
        how = ("dtype", "int8", "variant", "offline", "refiner", "compile", *vars(MemoryOptions()))
        return inkwash.load(
            settings.model,
            parts=settings.part,
            **{name: getattr(settings, name) for name in how},
            **settings.places(),
        )


@contextmanager
def opening() -> Iterator[None]:
    """Turn what is wrong with a model's files into one line."""
    from inkwash.files import ModelFileError

    try:
        yield
    except ModelFileError as error:
        raise file_error(error) from error
    except ValueError as error:  # a device that is not there
        raise usage_error(error) from error


@contextmanager
def drawing() -> Iterator[None]:
    """Turn what can go wrong with a valid request on an open model into one line."""
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
def progress(num_steps: int) -> Iterator["Callable[[Step], None]"]:
    """A bar on stderr that each step moves; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sampling", total=num_steps)
        # some samplers take more steps than they were asked for
        yield lambda step: bar.update(task, completed=step.index + 1, total=max(num_steps, step.index + 1))
