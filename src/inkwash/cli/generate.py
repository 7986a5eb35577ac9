"""`inkwash generate`: pictures from a prompt."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.pipeline.metadata import save_image


def generate(
    prompt: options.Prompt,
    /,
    *,
    negative_prompt: options.NegativePrompt = "",
    width: options.Width = None,
    height: options.Height = None,
    steps: options.Steps = 20,
    cfg_scale: options.CfgScale = 5.0,
    sampler: options.Sampler = "dpmpp_2m",
    schedule: options.Schedule = "automatic",
    seed: options.Seed = None,
    batch_size: options.BatchSize = 1,
    model: options.ModelName = "mini",
    output: Annotated[
        Path | None,
        Parameter(
            help="PNG, JPEG or WebP. A batch adds -1, -2 and so on; default: named by prompt and seed."
        ),
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
) -> None:
    """Draw pictures from PROMPT, and print their paths.

    An --output that exists is replaced; files that are named by default never replace another. Each file
    holds the whole recipe, as A1111 writes it.
    """
    request = options.make_request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        schedule=schedule,
        seed=seed,
        batch_size=batch_size,
    )
    outputs = numbered(output, batch_size) if output else []
    for path in outputs or [Path("image.png")]:
        options.check_output(path)
    if seed is None:
        print(f"seed {request.seed}", file=sys.stderr)

    begin = time.perf_counter()
    opened = options.open_model(model)
    loaded = time.perf_counter()
    with options.drawing(), options.progress(steps) as on_step:
        arguments = request.model_dump()
        images = opened.text_to_image(**arguments, on_step=on_step)
    sampled = time.perf_counter()

    saved = []
    for k, image in enumerate(images):
        path = outputs[k] if outputs else options.free_path(prompt, f"{request.seed + k}.png")
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
            "parameters": arguments | size,
        }
        print(json.dumps(report))


def numbered(path: Path, num: int) -> list[Path]:
    """`path` itself for one picture; taxi-01.png ... taxi-12.png for twelve."""
    digits = len(str(num))
    return [path] if num == 1 else [path.with_stem(f"{path.stem}-{k:0{digits}}") for k in range(1, num + 1)]
