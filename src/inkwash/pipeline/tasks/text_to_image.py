"""Prompt to picture, also through a prior."""

import torch
from PIL import Image

from inkwash.pipeline.controls import in_pass
from inkwash.pipeline.denoising.denoiser import Watch, sample
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.vectors import of_prompts
from inkwash.pipeline.model import Model
from inkwash.pipeline.passes.hires import enlarge
from inkwash.pipeline.run import counted, finish, start
from inkwash.pipeline.task_requests import TextToImageRequest


def text_to_image(
    model: Model, resolved: Resolved[TextToImageRequest], on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw the request's `batch_size` pictures; `on_step` sees each step, and stops the run by raising.

    Image k depends on its own seed alone, so it equals the one drawn alone with seed + k, up to the rounding
    of batched arithmetic. Each image's info holds A1111's `parameters` text.
    """
    with torch.inference_mode():
        on_step = counted(on_step)
        request = resolved.request
        first = resolved.changed(controls=in_pass(request.controls, "first"))
        seen = of_prompts(model, resolved)
        latent = sample(model, request, *start(model, first, None, *seen), on_step)
        if request.hires > 1:
            latent = enlarge(model, resolved, latent, on_step, *seen)
        return finish(model, resolved, latent, on_step)
