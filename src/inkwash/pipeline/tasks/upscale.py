"""A small picture to a large one, by diffusion. B batch, C channels, H W the small picture's size."""

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import worded
from inkwash.pipeline.images import to_pixels
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import UpscaleRequest

# of the noise that the x4 upscaler's picture is given
AUGMENTATION = NoiseSchedule.from_betas(sqrt_linear_betas(1000, 0.0001, 0.02))


@worded
def upscale(
    model: Model, request: UpscaleRequest, image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw a picture larger, with a model that sees the small one beside x (Rombach et al. 2022, section 4.5).

    One with classes of noise levels, as Stable Diffusion's x4 upscaler, sees it noised to noise_level, and is told it.
    Raises ValueError for another size, and for a noise_level that the model does not take.
    """
    c = model.unet.config
    if c.num_classes is None and request.noise_level is not None:
        raise ValueError(f"noise_level {request.noise_level}: {model.name} is not told of noise")
    if c.num_classes is not None and request.noise_level is None:
        request = request.model_copy(update={"noise_level": 20})
    f = model.autoencoder.config.factor
    request = request.sized((image.width * f, image.height * f))
    if request.size != (image.width * f, image.height * f):
        raise ValueError(f"width and height follow from the picture: {image.width * f}x{image.height * f}")
    with torch.inference_mode():
        pixels = to_pixels(image).to(model.device).expand(request.batch_size, -1, -1, -1)
        extra_cond = {"concat": pixels}
        if request.noise_level is not None:
            extra_cond = {
                "concat": noised(pixels, request.seeds, request.noise_level),
                "vector": torch.full((request.batch_size,), request.noise_level, device=model.device),
            }
        return draw(model, request, start(model, request, extra_cond=extra_cond), on_step, {"image": image})


def noised(pixels: Tensor, seeds: list[int], level: int) -> Tensor:
    """Pixels (B, 3, H, W) at a noise level of the augmentation; the noise is none that x is made of."""
    noise = NoiseSource([mixed(seed, -1) for seed in seeds], tuple(pixels.shape[1:]), pixels.device)()
    alpha_bar = AUGMENTATION.alphas_cumprod[level].item()
    return alpha_bar**0.5 * pixels + (1 - alpha_bar) ** 0.5 * noise
