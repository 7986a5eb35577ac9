"""Sheets that show noise becoming a picture. B batch, C channels, H W latent size.

A sampler's x = x0 + sigma * noise grows with sigma: at the start it is some ten times larger than any
latent that the autoencoder has seen, and would decode to saturated nonsense. So x is shown divided by
sqrt(1 + sigma^2). That is no cosmetics: for latents of unit variance the quotient has unit variance too, it
is what the network itself receives, and it is the x_t of Ho et al. 2020 (eq. 4, where sigma^2 is
(1 - alphas_cumprod) / alphas_cumprod). The prediction of x0 is a clean latent and is decoded as it is.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.samplers import Step
from inkwash.explain.drawing import GREY, PAPER
from inkwash.explain.plots import schedule_plot
from inkwash.explain.tiles import Tiles
from inkwash.pipeline.denoising.denoiser import sampler_of
from inkwash.pipeline.denoising.prompting import Prompts, Resolved, resolve
from inkwash.pipeline.denoising.vectors import of_prompts
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
    plot = schedule_plot(model.schedule, sigmas, spread(len(steps), shown), (width, 400)).image()
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
        D, sigmas, x, noise = start(model, resolved, None, *of_prompts(model, resolved))
        for step in sampler_of(model, resolved.request)(D, x, sigmas, noise=noise):
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
    tiles = Tiles(
        2 * len(columns), len(columns), (width, height),
        origin=(MARGIN, 112), gaps=(GAP, 42), ends=(MARGIN, 66), width=720,
    )  # fmt: skip
    room = tiles.image.width - 2 * MARGIN
    tiles.text(MARGIN, 24, " ".join(prompt.split()) or "(empty prompt)", 24, width=room)
    settings = f"{request.sampler}, {request.schedule} schedule, {len(steps)} steps, "
    settings += f"cfg_scale {number(request.cfg_scale)}, seed {request.seed}, {model.name}"
    tiles.text(MARGIN, 58, settings, 14, GREY, width=room)
    tiles.text(MARGIN, 88, "what the network sees: x / sqrt(1 + sigma^2), decoded", 15)
    below = tiles.place(len(columns))[1]
    tiles.text(MARGIN, below - 24, "the finished picture that it predicts from it: x0, decoded", 15)
    for k, (seen, predicted, name, level) in enumerate(columns):
        tiles.put(k, seen, scale, Image.Resampling.NEAREST)
        tiles.put(k + len(columns), predicted, scale, Image.Resampling.NEAREST)
        x = tiles.place(k)[0] + width / 2
        tiles.text(x, below + height + 8, name, 14, middle=True)
        tiles.text(x, below + height + 27, level, 13, GREY, middle=True)
    return tiles.image


def spread(num_steps: int, shown: int) -> list[int]:
    """At most `shown` step indices, evenly from the first to the last."""
    shown = min(shown, num_steps)
    return [round(k * (num_steps - 1) / max(shown - 1, 1)) for k in range(shown)]
