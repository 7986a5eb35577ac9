"""`inkwash merge`: a new model from several models."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from inkwash.cli import options
from inkwash.cli.loading import STRENGTH, options_of
from inkwash.files import ModelFileError
from inkwash.merge.options import MergeOptions

if TYPE_CHECKING:
    from inkwash.merge.recipe import Recipe

app = App(name="merge", help="Make models of models.")
Output = Annotated[
    Path, Parameter(name=["--output", "-o"], help="A .safetensors file, or a folder in the diffusers layout.")
]


OWN = [name for name in MergeOptions.model_fields if name not in ("models", "components")]


@Parameter(name="*")
@dataclass(frozen=True)
class StepOptions(options_of(MergeOptions, *OWN)):
    """Options of a merge in one step."""

    component: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            negative="",
            help="NAME=ALPHA of unet, vae, text_encoder or text_encoder_2; repeatable.",
        ),
    ] = ()

    def merging(self, models: tuple[str, ...]) -> MergeOptions:
        """The checked options of merging these models."""
        given = dict(vars(self))
        with options.checking():
            own = components(given.pop("component"))
            return MergeOptions.model_validate(given | {"models": models, "components": own})


@Parameter(name="*")
@dataclass(frozen=True)
class LoraOptions:
    """LoRAs that are baked into the result."""

    lora: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=False, negative="", help="FILE or FILE:STRENGTH, baked in; repeatable."),
    ] = ()
    lora_blocks: Annotated[
        str | None, Parameter(help="The LoRAs' strength in each block, in place of STRENGTH; see the docs.")
    ] = None
    lora_component: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False, negative="", help="NAME=STRENGTH, such as text_encoder=0.5; repeatable."
        ),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True)
class ViewOptions:
    """Pictures and plots of a merge."""

    grid: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            negative="",
            help="alpha=0,0.5,1: draw a sheet of pictures to --output, and write no model; repeatable once.",
        ),
    ] = ()
    prompt: Annotated[str, Parameter(help="Of a grid's pictures; their seed is --seed.")] = ""
    steps: Annotated[int | None, Parameter(converter=options.whole, help="Of a grid's pictures.")] = None
    plot: Annotated[
        Path | None, Parameter(help="An SVG or PNG file for the blocks' weights, and for how far each moved.")
    ] = None


STEP, LORAS, VIEWS = StepOptions(), LoraOptions(), ViewOptions()


@app.default
def merge(
    first: Annotated[
        str,
        Parameter(
            help="A model, or a recipe: .toml, .json, .mecha, mergekit's .yaml, or a merged model's file."
        ),
    ],
    /,
    *others: Annotated[str, Parameter(help="More models.")],
    output: Output,
    step: StepOptions = STEP,
    loras: LoraOptions = LORAS,
    views: ViewOptions = VIEWS,
    as_json: options.AsJson = False,
) -> None:
    """Merge models into one file, tensor by tensor, and print the path.

    The result's metadata say how it was made; `inkwash inspect` shows it, and merging again by it gives the same bytes.
    """
    with failing():
        recipe, folder = recipe_of((first, *others), step, loras)
        if views.plot:
            draw_plot(recipe, folder, views.plot)
        if views.grid:
            values = {"prompt": views.prompt, "steps": views.steps, "seed": step.seed}
            draw_grid(recipe, folder, views.grid, values, output)
        else:
            write_recipe(recipe, folder, output, as_json)


def recipe_of(models: tuple[str, ...], step: StepOptions, loras: LoraOptions) -> "tuple[Recipe, Path]":
    """A recipe, from its file or from options, and the folder that its files are in."""
    from inkwash.merge.recipe import checked, read_recipe

    if len(models) == 1 and not loras.lora and is_recipe(models[0]):
        return read_recipe(Path(models[0])), Path(models[0]).parent
    fields = step.merging(models).recipe()
    if loras.lora:
        strength = {
            "blocks": loras.lora_blocks,
            "components": components(loras.lora_component, "lora-component"),
        }
        alone = len(models) == 1 and not step.method
        fields = with_loras(fields | {"steps": []} if alone else fields, loras.lora, strength)
    elif loras.lora_blocks or loras.lora_component:
        raise options.usage_error("--lora-blocks and --lora-component are for --lora")
    return checked(fields, "merge"), Path()


def draw_grid(
    recipe: "Recipe", folder: Path, grid: Sequence[str], values: dict[str, Any], output: Path
) -> None:
    from inkwash.merge.grids import axis, merge_sheet
    from inkwash.pipeline.record.metadata import save_image
    from inkwash.pipeline.task_requests import TextToImageRequest

    options.check_output(output)
    with options.checking():
        request = TextToImageRequest.model_validate({k: v for k, v in values.items() if v is not None})
    image = merge_sheet(recipe, recipe.sources(folder), [axis(text) for text in grid], request)
    save_image(image, output)
    print(output)


def draw_plot(recipe: "Recipe", folder: Path, path: Path) -> None:
    from inkwash.explain.drawing import write_plots
    from inkwash.merge.expression import Value
    from inkwash.merge.grids import plots

    value = recipe.value(recipe.sources(folder), folder)
    if not isinstance(value, Value):
        raise options.usage_error("--plot is of models, and the result is an adapter")
    write_plots(plots(value), path)


def write_recipe(recipe: "Recipe", folder: Path, output: Path, as_json: bool) -> None:
    from inkwash.merge.adapters import AdapterValue
    from inkwash.merge.making import make

    with progress() as on_tensor:
        value = make(recipe, output, folder, on_tensor)
    size = (
        {"layers": len(value.targets)} if isinstance(value, AdapterValue) else {"tensors": len(value.infos)}
    )
    print(json.dumps({"output": str(output)} | size) if as_json else output)


def is_recipe(first: str) -> bool:
    """A text file, or a model alone, which can be meant for its recipe only."""
    return Path(first).suffix in (".toml", ".json", ".yaml", ".yml", ".mecha", ".safetensors")


def with_loras(fields: dict[str, Any], files: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields, with LoRAs baked into what they make. more: what else is said of every strength."""
    pairs = [shared(file) for file in files]
    adapters = {f"lora{i}": path for i, (path, _) in enumerate(pairs, 1)}
    steps = list(fields["steps"])
    made = f"step{len(steps)}" if steps else next(iter(fields["models"]))
    shares = [{"base": by} | more for _, by in pairs]
    bake = {"method": "bake", "models": [made, *adapters], "shares": shares}
    return fields | {"adapters": adapters, "steps": [*steps, bake]}


def shared(file: str) -> tuple[str, float]:
    """A file and its share or strength, which is 1 unless it is written behind a colon."""
    match = None if Path(file).exists() else STRENGTH.fullmatch(file)
    return (match[1], float(match[2])) if match else (file, 1.0)


def components(given: tuple[str, ...], option: str = "component") -> dict[str, float]:
    made = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            made[name] = float(number)
        except ValueError:
            raise options.usage_error(f"--{option} {text!r} is not NAME=ALPHA, such as vae=0.3") from None
    return made


@contextmanager
def failing() -> Iterator[None]:
    try:
        yield
    except ModelFileError as error:
        raise options.file_error(error) from error
    except ValueError as error:
        raise options.usage_error(error) from error


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that each tensor moves; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("merging"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("merging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
