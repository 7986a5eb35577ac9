"""The verbs that draw: `inkwash generate`, `edit` and `inpaint`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.pipeline.metadata import save_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Request

Given = Annotated[Path, Parameter(help="A picture, of any format that Pillow reads.")]
Strength = Annotated[float, Parameter(help="How much to change it, above 0 to 1; 1 keeps nothing.")]
StepRule = Annotated[
    str, Parameter(help="How many steps that is: a1111 or diffusers, a part of them; exact, all.")
]


def generate(
    prompt: options.Prompt,
    /,
    *,
    settings: options.Settings = options.DEFAULTS,
    batch_size: options.BatchSize = 1,
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw pictures from PROMPT, and print their paths.

    An --output that exists is replaced; files that are named by default never replace another. Each file
    holds the whole recipe, as A1111 writes it.
    """
    from inkwash.pipeline.request import Request
    from inkwash.pipeline.text_to_image import text_to_image

    request = options.make_request(Request, prompt, settings, batch_size=batch_size)
    deliver(request, settings, output, as_json, lambda model, see: text_to_image(model, request, see))


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
    from inkwash.pipeline.image_to_image import ImageRequest, image_to_image

    more = {"strength": strength, "step_rule": step_rule, "batch_size": batch_size}
    request = options.make_request(ImageRequest, prompt, settings, **more)
    given = options.open_image(image)
    draw = lambda model, see: image_to_image(model, request, given, see)  # noqa: E731
    deliver(request, settings, output, as_json, draw)


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
    from inkwash.pipeline.inpaint import InpaintRequest
    from inkwash.pipeline.inpaint import inpaint as draw_inside

    more = {"strength": strength, "step_rule": step_rule, "mask_blur": mask_blur, "fill": fill}
    more |= {"only_masked": only_masked, "padding": padding, "batch_size": batch_size}
    request = options.make_request(InpaintRequest, prompt, settings, **more)
    given, hole = options.open_image(image), options.open_image(mask, "L")
    draw = lambda model, see: draw_inside(model, request, given, hole, see)  # noqa: E731
    deliver(request, settings, output, as_json, draw)


def deliver(
    request: "Request",
    settings: options.Settings,
    output: Path | None,
    as_json: bool,
    draw: "Callable[[Model, Callable[[Step], None]], list[Image]]",
) -> None:
    """Open the model, draw, save, and print the paths or the report."""
    outputs = numbered(output, request.batch_size) if output else []
    for path in outputs or [Path("image.png")]:
        options.check_output(path)
    begin = time.perf_counter()
    opened = options.open_model(settings)
    loaded = time.perf_counter()
    options.announce_seed(request, settings)
    with options.drawing(), options.progress(request.steps) as on_step:
        images = draw(opened, on_step)
    sampled = time.perf_counter()

    saved = []
    for k, image in enumerate(images):
        path = outputs[k] if outputs else options.free_path(request.prompts[k], f"{request.seed + k}.png")
        with options.drawing():
            save_image(image, path)
        saved.append({"path": str(path), "seed": request.seed + k})
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


def numbered(path: Path, num: int) -> list[Path]:
    """`path` itself for one picture; taxi-01.png ... taxi-12.png for twelve."""
    digits = len(str(num))
    return [path] if num == 1 else [path.with_stem(f"{path.stem}-{k:0{digits}}") for k in range(1, num + 1)]
