"""A picture and a prompt to a picture. B batch, C channels, H W latent size."""

import torch
from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.images import nearest_size
from inkwash.pipeline.latents import encode_image
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import ImageRequest
from inkwash.pipeline.tasks.tiles import draw_tiles


def image_to_image(
    model: Model,
    resolved: Resolved[ImageRequest],
    image: Image.Image,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Noise a picture and draw it anew by the prompt (SDEdit, Meng et al. 2022).

    strength 1 is `text_to_image`: nothing is left of the picture but its size. With a tile it is `draw_tiles`.
    """
    if resolved.request.tile:
        return draw_tiles(model, resolved, image, on_step)
    with torch.inference_mode():
        resolved = resolved.sized(nearest_size(image, model.autoencoder.config.factor))
        request = resolved.request
        D, sigmas, x, noise = start(
            model, resolved, sigmas_for_strength(request, request.strength, model.schedule, request.step_rule)
        )
        if request.strength < 1:
            x = x + encode_image(model, image, request.size)
        return draw(model, resolved, (D, sigmas, x, noise), on_step, {"image": image})
