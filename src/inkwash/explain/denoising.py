"""How noise becomes a picture. B batch, C channels, H W latent size.

A sampler's x = x0 + sigma * noise grows with sigma: at the start it is some ten times larger than any
latent that the autoencoder has seen, and would decode to saturated nonsense. So x is shown divided by
sqrt(1 + sigma^2). That is no cosmetics: for latents of unit variance the quotient has unit variance too, it
is what the network itself receives, and it is the x_t of Ho et al. 2020 (eq. 4, where sigma^2 is
(1 - alphas_cumprod) / alphas_cumprod). The prediction of x0 is a clean latent and is decoded as it is.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from inkwash.diffusion.samplers import SAMPLERS, Step
from inkwash.explain.plot import GREY, INK, PAPER, fitting, font, schedule_plot
from inkwash.pipeline.denoising.prompting import Prompts, Resolved, resolve
from inkwash.pipeline.images import to_images
from inkwash.pipeline.latents import decode
from inkwash.pipeline.model import Model
from inkwash.pipeline.option import number
from inkwash.pipeline.record.parameters import parameters
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest

MARGIN, GAP = 28, 8
MIN_TILE, MAX_TILE = 128, 192  # pixels of a tile's longer side


Trajectory = list[tuple[Tensor, Step]]  # x as each step receives it, and what the step made of it


def denoising_picture(
    model: Model, request: TextToImageRequest, shown: int = 8, on_step: Callable[[Step], None] | None = None
) -> Image.Image:
    """`denoising_strip` above `schedule_plot`; its info holds the parameters, as a drawn picture's does."""
    resolved = first_of(resolve(model, request))
    steps = trajectory(model, resolved, on_step)
    strip = strip_of(model, resolved.request, steps, shown)
    sigmas = torch.tensor([*(step.sigma for _, step in steps), 0.0], dtype=torch.float64)
    width = max(strip.width, 720)
    plot = schedule_plot(model.schedule, sigmas, spread(len(steps), shown), (width, 400))
    image = Image.new("RGB", (width, strip.height + plot.height), PAPER)
    image.paste(strip)
    image.paste(plot, (0, strip.height))
    image.info["parameters"] = parameters(model, resolved, 0)
    return image


def denoising_strip(
    model: Model, request: TextToImageRequest, shown: int = 8, on_step: Callable[[Step], None] | None = None
) -> Image.Image:
    """Draw the first picture of `request`, and show `shown` of its steps (the first and the last among them).

    A column is a step: above, x as the step receives it; below, the x0 that is predicted from it. `on_step`
    sees every step, and stops the run by raising. Raises ValueError where `shown` is less than 2, or the size
    does not fit the model.
    """
    if shown < 2:
        raise ValueError(f"shown {shown} is less than 2")
    resolved = first_of(resolve(model, request))
    return strip_of(model, resolved.request, trajectory(model, resolved, on_step), shown)


def first_of(resolved: Resolved[TextToImageRequest]) -> Resolved[TextToImageRequest]:
    """The first picture of a batch alone."""
    request = resolved.request
    first = {"prompt": request.prompts[0], "negative_prompt": request.negative_prompts[0], "batch_size": 1}

    def of_first(prompts: Prompts) -> Prompts:
        return replace(prompts, texts=prompts.texts[:1], readings=prompts.readings[:1])

    refiner_prompts = resolved.refiner_prompts and of_first(resolved.refiner_prompts)
    request = request.model_copy(update=first)
    return Resolved(request, of_first(resolved.prompts), refiner_prompts, resolved.files[:1])


def trajectory(
    model: Model, resolved: Resolved[TextToImageRequest], on_step: Callable[[Step], None] | None = None
) -> Trajectory:
    """All steps to a picture; some samplers have another number of them than the request says."""
    steps: Trajectory = []
    with torch.inference_mode():
        D, sigmas, x, noise = start(model, resolved)
        for step in SAMPLERS[resolved.request.sampler](D, x, sigmas, noise=noise):
            steps.append((x, step))
            x = step.x
            if on_step:
                on_step(step)
    return steps


def strip_of(model: Model, request: TextToImageRequest, steps: Trajectory, shown: int) -> Image.Image:
    """The picture of `denoising_strip`."""
    prompt = request.prompts[0]
    columns: list[tuple[Image.Image, Image.Image, str, str]] = []
    with torch.inference_mode():
        for x, step in (steps[k] for k in spread(len(steps), shown)):
            seen, predicted = (
                to_images(decode(model, latent, request.seamless))[0]
                for latent in (x / (1 + step.sigma**2) ** 0.5, step.denoised)
            )
            columns.append((seen, predicted, f"step {step.index + 1}", f"sigma {step.sigma:.3g}"))

    longer = max(columns[0][0].size)
    scale = min(max(longer, MIN_TILE), MAX_TILE) / longer
    width, height = (round(side * scale) for side in columns[0][0].size)
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST

    top = (112, 112 + height + 42)  # of the rows
    total = max(2 * MARGIN + len(columns) * (width + GAP) - GAP, 720)
    image = Image.new("RGB", (total, top[1] + height + 66), PAPER)
    draw = ImageDraw.Draw(image)
    title = fitting(draw, " ".join(prompt.split()) or "(empty prompt)", 24, total - 2 * MARGIN)
    draw.text((MARGIN, 24), title, INK, font(24))
    settings = f"{request.sampler}, {request.schedule} schedule, {len(steps)} steps, "
    settings += f"cfg_scale {number(request.cfg_scale)}, seed {request.seed}, {model.name}"
    draw.text((MARGIN, 58), fitting(draw, settings, 14, total - 2 * MARGIN), GREY, font(14))
    draw.text((MARGIN, top[0] - 24), "what the network sees: x / sqrt(1 + sigma^2), decoded", INK, font(15))
    draw.text(
        (MARGIN, top[1] - 24), "the finished picture that it predicts from it: x0, decoded", INK, font(15)
    )
    for k, (seen, predicted, name, level) in enumerate(columns):
        left = MARGIN + k * (width + GAP)
        for tile, y in zip((seen, predicted), top, strict=True):
            image.paste(tile.resize((width, height), smooth), (left, y))
        draw.text((left + width / 2, top[1] + height + 8), name, INK, font(14), anchor="ma")
        draw.text((left + width / 2, top[1] + height + 27), level, GREY, font(13), anchor="ma")
    return image


def spread(num_steps: int, shown: int) -> list[int]:
    """At most `shown` step indices, evenly from the first to the last."""
    shown = min(shown, num_steps)
    return [round(k * (num_steps - 1) / max(shown - 1, 1)) for k in range(shown)]
