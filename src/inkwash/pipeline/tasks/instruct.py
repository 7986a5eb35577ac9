"""InstructPix2Pix: editing a picture by an instruction. B batch, C channels, H W latent size."""

import torch
from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import nearest_size
from inkwash.pipeline.latents import encode_image
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import InstructRequest


def instruct(
    model: Model, resolved: Resolved[InstructRequest], image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Edit a picture as the prompt says, with a model that was trained to (Brooks et al. 2023)."""
    resolved = resolved.sized(nearest_size(image, model.autoencoder.config.factor))
    request = resolved.request
    with torch.inference_mode():
        seen = model.inputs.concat({"picture": encode_image(model, image, request.size)})
        extra_cond = {"concat": seen.expand(request.batch_size, -1, -1, -1)}
        begun = start(model, resolved, extra_cond=extra_cond, image_scale=request.image_cfg_scale)
        return draw(model, resolved, begun, on_step, {"image": image})
