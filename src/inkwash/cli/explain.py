"""`inkwash explain`: pictures of the inner workings."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from inkwash.cli import options
from inkwash.cli.fields import with_fields
from inkwash.pipeline.record.metadata import save_image
from inkwash.pipeline.request import Request

app = App(name="explain", help="Draw what happens inside.")


@app.command
@with_fields(Request, "prompt", "batch_size")
def denoise(
    prompt: options.Prompt,
    /,
    *,
    loading: options.LoadOptions = options.DEFAULTS,
    shown: Annotated[
        int, Parameter(converter=options.whole, help="Columns: steps spread over the run, at least 2.")
    ] = 8,
    output: Annotated[
        Path | None, Parameter(help="PNG, JPEG or WebP; default: named by prompt and seed.")
    ] = None,
    **values: Any,
) -> None:
    """Draw how noise becomes a picture, step by step, and print the path.

    Above: what the network sees at some of the steps, and the picture that it predicts from it. Below: the
    noise level over training time, with the levels that the sampler visits. An --output that exists is
    replaced.
    """
    from inkwash.pipeline.task_requests import TextToImageRequest

    if shown < 2:
        raise options.usage_error(f"--shown {shown} should be at least 2")
    request, drawn = options.make_request(TextToImageRequest, values | {"prompt": prompt}, loading)
    options.check_output(output or Path("image.png"))

    from inkwash.explain.denoising import denoising_picture

    opened = options.open_model(loading)
    options.announce_seeds(request, drawn)
    with options.drawing(), options.progress(request.steps) as on_step:
        image = denoising_picture(opened, request, shown, on_step)
    path = output or options.free_path(prompt, f"{request.seed}-denoise.png")
    with options.drawing():
        save_image(image, path)
    print(path)
