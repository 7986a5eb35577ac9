"""Drawing from the command line: the model opened, pictures saved, and a report printed."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkwash.cli import options
from inkwash.pipeline.record.metadata import save_image
from inkwash.pipeline.tasks import TASKS

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Request
    from inkwash.pipeline.task_requests import TextToImageRequest

    Draw = Callable[[Any, Callable[[Any], None]], list[Image]]


def drawing(
    request: "Request", **images: "Image"
) -> "Callable[[Model, Callable[[Step], None]], list[Image]]":
    """A function that draws a request of any task. images: by role."""
    return lambda model, on_step: TASKS[request.task].draw(model, request, images, on_step)


def draw_and_save_grid(
    request: "TextToImageRequest",
    loading: options.LoadOptions,
    texts: list[str],
    output: Path | None,
    as_json: bool,
    announced: Sequence[str] = (),
) -> None:
    """Draw and save the pictures of a grid, and the sheet."""
    from inkwash.explain.sheets import axis, cells, sheet
    from inkwash.pipeline.run import counted

    with options.checking():
        axes = [axis(text) for text in texts]
        requests = [cell for row in cells(request, axes) for cell in row]

    def draw(model: "Model", on_step: "Callable[[Step], None]") -> "list[Image]":
        on_step = counted(on_step)
        images = [TASKS["text_to_image"].draw(model, cell, {}, on_step)[0] for cell in requests]
        return [*images, sheet(request, axes, images)]

    draw_and_save(request, loading, output, as_json, draw, requests, announced)


def draw_and_save(
    request: "Request",
    loading: options.LoadOptions,
    output: Path | None,
    as_json: bool,
    draw: "Draw",
    cells: "Sequence[TextToImageRequest]" = (),
    announced: Sequence[str] = (),
) -> None:
    """Open the model, draw, save, and print the paths or the report. The others: as of `drawn_and_saved`."""
    report = drawn_and_saved(request, loading, output, not as_json, draw, cells, announced)
    if as_json:
        print(json.dumps(report))


def draw_and_save_cascade(
    request: "TextToImageRequest",
    loading: options.LoadOptions,
    models: Sequence[str],
    output: Path | None,
    as_json: bool,
    announced: Sequence[str] = (),
) -> None:
    """Draw, and have each of the models enlarge the pictures of the one before; one model is open at a time.

    All stages are kept: the last at `output`, the others beside it as PNG, with the number of the stage in their names.
    """
    from inkwash.pipeline.cascade import enlarged, first_stage

    for name in models:
        options.check_enlarges(name, loading)
    output = output or options.free_path(request.prompts[0], f"{request.seeds[0]}.png")
    options.check_output(output)
    first, reports = first_stage(request), []
    for stage, name in enumerate((loading.model, *models), 1):
        here = output if stage > len(models) else output.with_name(f"{output.stem}-stage{stage}.png")
        if stage == 1:
            reports.append(drawn_and_saved(first, loading, here, not as_json, drawing(first), (), announced))
            continue
        images = [options.open_image(Path(one["path"]), "RGBA") for one in reports[-1]["images"]]

        def draw(
            model: "Model", on_step: "Callable[[Step], None]", images: "list[Image]" = images
        ) -> "list[Image]":
            return [enlarged(model, request, k, image, on_step) for k, image in enumerate(images)]

        later = replace(loading, model=name, parts=(), refiner=None, prior=None)
        reports.append(drawn_and_saved(request, later, here, not as_json, draw))
    if as_json:
        print(json.dumps({"stages": reports}))


def drawn_and_saved(
    request: "Request",
    loading: options.LoadOptions,
    output: Path | None,
    shown: bool,
    draw: "Draw",
    cells: "Sequence[TextToImageRequest]" = (),
    announced: Sequence[str] = (),
) -> dict[str, Any]:
    """Open the model, draw and save; the report. shown: whether to print the paths.

    cells: of a grid, whose sheet is drawn last. announced: names of the seeds to print.
    """
    named = [pair for one in cells or [request] for pair in zip(one.prompts, one.seeds, strict=True)]
    options.check_output(output or Path("image.png"))
    outputs = numbered(output, len(named), bool(cells)) if output else []
    for path in outputs:
        options.check_output(path)
    begin = time.perf_counter()
    opened = options.open_for(request.task, loading)
    loaded = time.perf_counter()
    options.announce_seeds(request, announced)
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
        if shown:
            print(path, flush=True)
    size = {"width": images[0].width, "height": images[0].height}
    return {
        "images": saved,
        "model": {"name": opened.name, "hash": opened.hash},
        "seconds": {"load": round(loaded - begin, 3), "sample": round(sampled - loaded, 3)},
        "parameters": request.model_dump() | size,
    }


def numbered(path: Path, num: int, sheet: bool = False) -> list[Path]:
    """`path` itself for one picture; taxi-01.png ... taxi-12.png for twelve, and taxi.png for their sheet."""
    if num == 1 and not sheet:
        return [path]
    digits = len(str(num))
    paths = [path.with_stem(f"{path.stem}-{k:0{digits}}") for k in range(1, num + 1)]
    return [*paths, path] if sheet else paths
