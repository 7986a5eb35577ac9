"""The verbs that draw: `inkwash generate` and those that are given a picture."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.pipeline.names import UPSCALER_NAMES
from inkwash.pipeline.record.metadata import save_image
from inkwash.pipeline.tasks import TASKS

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Request
    from inkwash.pipeline.task_requests import TextToImageRequest

Given = Annotated[Path, Parameter(help="A picture, of any format that Pillow reads.")]
Strength = Annotated[float, Parameter(help="How much to change it, above 0 to 1; 1 keeps nothing.")]
Side = Annotated[int, Parameter(converter=options.whole, help="Pixels to draw at that side.")]
StepRule = Annotated[
    str, Parameter(help="How many steps that is: a1111 or diffusers, a part of them; exact, all.")
]


def generate(
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    hires: Annotated[float, Parameter(help="Draw it a second time, so many times larger; 1 is off.")] = 1.0,
    hires_strength: Annotated[float, Parameter(help="How much that changes it, above 0 to 1.")] = 0.7,
    hires_steps: Annotated[
        int | None, Parameter(converter=options.whole, help="Steps of it; default: as many as --steps.")
    ] = None,
    hires_upscaler: Annotated[str, Parameter(help=f"One of {', '.join(UPSCALER_NAMES)}.")] = "latent",
    batch_size: options.BatchSize = 1,
    grid: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="One or two axes, as steps=10,20 cfg_scale=3,7: a labelled sheet of a picture for each.",
        ),
    ] = None,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw pictures from PROMPT, and print their paths.

    An --output that exists is replaced; files that are named by default never replace another. Each file
    holds the whole recipe, as A1111 writes it. With --grid, --output is the sheet, and the pictures are numbered.
    """
    from inkwash.pipeline.task_requests import TextToImageRequest

    more = {"hires": hires, "hires_strength": hires_strength, "hires_steps": hires_steps}
    more |= {"hires_upscaler": hires_upscaler, "batch_size": batch_size}
    request = options.make_request(TextToImageRequest, prompt, settings, **more)
    if grid:
        return deliver_grid(request, settings, grid, output, as_json)
    deliver(
        request,
        settings,
        output,
        as_json,
        drawing(request),
    )


def edit(
    image: Given,
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    strength: Strength = 0.75,
    step_rule: StepRule = "a1111",
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw IMAGE anew by PROMPT, and print the paths.

    Without --width and --height pictures have the size of IMAGE, as nearly as the model can.
    """
    from inkwash.pipeline.task_requests import ImageRequest

    more = {"strength": strength, "step_rule": step_rule, "batch_size": batch_size}
    request = options.make_request(ImageRequest, prompt, settings, **more)
    given = options.open_image(image)
    deliver(request, settings, output, as_json, drawing(request, image=given))


def inpaint(
    image: Given,
    mask: Annotated[Path, Parameter(help="A picture of the same size, white where to draw.")],
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    strength: Strength = 1.0,
    step_rule: StepRule = "a1111",
    mask_blur: Annotated[float, Parameter(help="Pixels by which the mask's edge is softened, inward.")] = 4,
    fill: Annotated[
        str, Parameter(help="What the noise is laid on: original, around (its colours), noise or nothing.")
    ] = "original",
    only_masked: Annotated[
        bool, Parameter(negative="", help="Draw the mask's surroundings alone, in the model's size.")
    ] = False,
    padding: Annotated[
        int, Parameter(converter=options.whole, help="Pixels around the mask that are seen then.")
    ] = 32,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw the white part of MASK in IMAGE anew by PROMPT, and print the paths.

    Every pixel where MASK is black stays as it is.
    """
    from inkwash.pipeline.task_requests import InpaintRequest

    more = {"strength": strength, "step_rule": step_rule, "mask_blur": mask_blur, "fill": fill}
    more |= {"only_masked": only_masked, "padding": padding, "batch_size": batch_size}
    request = options.make_request(InpaintRequest, prompt, settings, **more)
    given, hole = options.open_image(image), options.open_image(mask, "L")
    deliver(request, settings, output, as_json, drawing(request, image=given, mask=hole))


def outpaint(
    image: Given,
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    left: Side = 0,
    top: Side = 0,
    right: Side = 0,
    bottom: Side = 0,
    strength: Annotated[float, Parameter(help="Above 0 to 1; less keeps the colours of the edges.")] = 0.8,
    step_rule: StepRule = "a1111",
    mask_blur: Annotated[float, Parameter(help="Pixels over which they fade, outward.")] = 8,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw on beyond the sides of IMAGE by PROMPT, and print the paths.

    Every pixel of IMAGE stays as it is.
    """
    from inkwash.pipeline.task_requests import OutpaintRequest

    more = {"left": left, "top": top, "right": right, "bottom": bottom, "mask_blur": mask_blur}
    more |= {"strength": strength, "step_rule": step_rule}
    request = options.make_request(OutpaintRequest, prompt, settings, batch_size=batch_size, **more)
    given = options.open_image(image)
    deliver(
        request,
        settings,
        output,
        as_json,
        drawing(request, image=given),
    )


def depth(
    image: Given,
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    depth: Annotated[Path | None, Parameter(help="A picture of its depth, lighter where nearer.")] = None,
    depth_model: Annotated[
        Path | None, Parameter(help="A folder of a network that estimates it, such as MiDaS's.")
    ] = None,
    strength: Strength = 0.75,
    step_rule: StepRule = "a1111",
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw IMAGE anew by PROMPT while its depth stays, with a model for that, and print the paths.

    The depth is given, by --depth, or estimated, by --depth-model.
    """
    from inkwash.pipeline.task_requests import DepthRequest
    from inkwash.pipeline.tasks.depth import estimate_depth

    if (depth is None) == (depth_model is None):
        raise options.usage_error("give --depth, a picture, or --depth-model, a folder, and not both")
    more = {"strength": strength, "step_rule": step_rule, "batch_size": batch_size}
    request = options.make_request(DepthRequest, prompt, settings, **more)
    given = options.open_image(image)
    if depth_model is None:
        assert depth is not None
        near = options.open_image(depth, "F")
    else:
        with options.opening():
            near = estimate_depth(given, depth_model)
    deliver(request, settings, output, as_json, drawing(request, image=given, depth=near))


def instruct(
    image: Given,
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    image_cfg_scale: Annotated[float, Parameter(help="How nearly to keep to IMAGE; 1 is off.")] = 1.5,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Do to IMAGE what PROMPT says, with an InstructPix2Pix model, and print the paths."""
    from inkwash.pipeline.task_requests import InstructRequest

    more = {"image_cfg_scale": image_cfg_scale, "batch_size": batch_size}
    request = options.make_request(InstructRequest, prompt, settings, **more)
    given = options.open_image(image)
    deliver(
        request,
        settings,
        output,
        as_json,
        drawing(request, image=given),
    )


def upscale(
    image: Given,
    prompt: options.Prompt = "",
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    noise_level: Annotated[
        int | None,
        Parameter(
            converter=options.whole,
            help="How much of the detail of IMAGE to doubt, 0 to 350; x4 upscaler: 20.",
        ),
    ] = None,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw IMAGE larger, with a model for that, such as Stable Diffusion's x4 upscaler, and print the paths."""
    from inkwash.pipeline.task_requests import UpscaleRequest

    more = {"noise_level": noise_level, "batch_size": batch_size}
    request = options.make_request(UpscaleRequest, prompt, settings, **more)
    given = options.open_image(image)
    deliver(
        request,
        settings,
        output,
        as_json,
        drawing(request, image=given),
    )


def layout(
    prompt: options.Prompt = "",
    /,
    *,
    box: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            negative="",
            help="x0,y0,x1,y1=WHAT, in parts of the picture from 0 to 1; repeatable, later ones above.",
        ),
    ],
    categories: Annotated[
        Path | None, Parameter(help="A text file whose line n, from 0 on, is the name of category n.")
    ] = None,
    settings: options.Settings = options.DEFAULTS,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw what boxes name where they lie, with a model for layouts, and print the paths.

    WHAT is words, or, for a model that sees no text such as latent diffusion's, the number of a category or its name
    in --categories.
    """
    from inkwash.pipeline.task_requests import LayoutRequest, number_by_name, read_box

    with options.checking():
        boxes = tuple(read_box(text) for text in box)
        if categories:
            boxes = number_by_name(options.read_lines(categories), boxes)
    request = options.make_request(LayoutRequest, prompt, settings, boxes=boxes, batch_size=batch_size)
    deliver(
        request,
        settings,
        output,
        as_json,
        drawing(request),
    )


def semantic(
    labels: Annotated[
        Path, Parameter(help="A picture with a palette, or grey: a pixel's value is its label.")
    ],
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw what a map of labels shows, with a model for semantic synthesis, and print the paths.

    Without --width and --height pictures have the size of LABELS, as nearly as the model can.
    """
    from inkwash.pipeline.task_requests import SemanticRequest

    request = options.make_request(SemanticRequest, "", settings, batch_size=batch_size)
    given = options.open_image(labels, "P")
    deliver(request, settings, output, as_json, drawing(request, labels=given))


def drawing(
    request: "Request", **images: "Image"
) -> "Callable[[Model, Callable[[Step], None]], list[Image]]":
    """A function that draws a request of any task. images: by role."""
    return lambda model, on_step: TASKS[request.task].draw(model, request, images, on_step)


def deliver_grid(
    request: "TextToImageRequest",
    settings: options.Settings,
    texts: list[str],
    output: Path | None,
    as_json: bool,
) -> None:
    """The same of a grid: its pictures, and at last the sheet."""
    from inkwash.explain.sheets import axis, cells, sheet
    from inkwash.pipeline.run import counted

    with options.checking():
        axes = [axis(text) for text in texts]
        requests = [cell for row in cells(request, axes) for cell in row]

    def draw(model: "Model", see: "Callable[[Step], None]") -> "list[Image]":
        see = counted(see)
        images = [TASKS["text_to_image"].draw(model, cell, {}, see)[0] for cell in requests]
        return [*images, sheet(request, axes, images)]

    deliver(request, settings, output, as_json, draw, requests)


def deliver(
    request: "Request",
    settings: options.Settings,
    output: Path | None,
    as_json: bool,
    draw: "Callable[[Model, Callable[[Step], None]], list[Image]]",
    cells: "Sequence[TextToImageRequest]" = (),
) -> None:
    """Open the model, draw, save, and print the paths or the report. cells: of a grid, whose sheet is drawn last."""
    named = [pair for one in cells or [request] for pair in zip(one.prompts, one.seeds, strict=True)]
    options.check_output(output or Path("image.png"))
    outputs = numbered(output, len(named), bool(cells)) if output else []
    for path in outputs:
        options.check_output(path)
    begin = time.perf_counter()
    opened = options.open_model(settings)
    loaded = time.perf_counter()
    options.announce_seed(request, settings)
    with options.drawing(), options.progress(sum(one.steps for one in cells or [request])) as on_step:
        images = draw(opened, on_step)
    sampled = time.perf_counter()

    saved = []
    for k, image in enumerate(images):
        prompt, seed, ending = (*named[k], ".png") if k < len(named) else (*named[0], "-grid.png")
        path = outputs[k] if outputs else options.free_path(prompt, f"{seed}{ending}")
        with options.drawing():
            save_image(image, path)
        saved.append({"path": str(path), "seed": seed})
        if not as_json:
            print(path, flush=True)
    if as_json:
        size = {"width": images[0].width, "height": images[0].height}
        report = {
            "images": saved,
            "model": {"name": opened.name, "hash": opened.hash},
            "seconds": {"load": round(loaded - begin, 3), "sample": round(sampled - loaded, 3)},
            "parameters": request.model_dump() | size,
        }
        print(json.dumps(report))


def numbered(path: Path, num: int, sheet: bool = False) -> list[Path]:
    """`path` itself for one picture; taxi-01.png ... taxi-12.png for twelve, and taxi.png for their sheet."""
    if num == 1 and not sheet:
        return [path]
    digits = len(str(num))
    paths = [path.with_stem(f"{path.stem}-{k:0{digits}}") for k in range(1, num + 1)]
    return [*paths, path] if sheet else paths
