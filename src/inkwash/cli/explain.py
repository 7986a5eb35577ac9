"""`inkwash explain`: pictures of what happens inside."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from inkwash.cli import options
from inkwash.pipeline.metadata import save_image

app = App(name="explain", help="Draw what happens inside.")


@app.command
def denoise(
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
    shown: Annotated[
        int, Parameter(converter=options.whole, help="Columns: steps spread over the run, at least 2.")
    ] = 8,
    model: options.ModelName = "mini",
    output: Annotated[
        Path | None, Parameter(help="PNG, JPEG or WebP; default: named by prompt and seed.")
    ] = None,
) -> None:
    """Draw how noise becomes a picture, step by step, and print the path.

    Above: what the network sees at some of the steps, and the picture that it predicts from it. Below: the
    noise level over training time, with the levels that the sampler visits. An --output that exists is
    replaced.
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
    )
    options.check_output(output or Path("image.png"))
    if shown < 2:
        raise options.usage_error(f"--shown {shown} should be at least 2")
    if seed is None:
        print(f"seed {request.seed}", file=sys.stderr)

    from inkwash.explain.denoising import denoising_picture

    opened = options.open_model(model)
    with options.drawing(), options.progress(steps) as on_step:
        image = denoising_picture(opened, request, shown, on_step)
    path = output or options.free_path(prompt, f"{request.seed}-denoise.png")
    with options.drawing():
        save_image(image, path)
    print(path)
