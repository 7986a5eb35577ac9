"""A small picture to a large one, by diffusion or by a pixel upscaler. B batch, C channels, H W the small picture's size."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas, sqrt_linear_betas
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import Picture, in_mode, to_pixels
from inkwash.pipeline.model import Model
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.record.parameters import upscaled_parameters, upscaled_recipe
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import UpscaleRequest
from inkwash.pipeline.upscaler import TILE, OnTile, Upscaler

# of the noise that the picture is given: the x4 upscaler's, and Imagen's
AUGMENTATION = NoiseSchedule.from_betas(sqrt_linear_betas(1000, 0.0001, 0.02))
IMAGEN_AUGMENTATION = NoiseSchedule.from_betas(cosine_betas())
MOST = 350  # of the x4 upscaler's levels, of which it has more, those are in use
FACTOR = 4  # by which Imagen's enlarge


def by_upscaler(
    upscaler: Upscaler, request: UpscaleRequest, image: Image.Image, on_tile: OnTile | None = None
) -> Image.Image:
    """A picture enlarged by a pixel upscaler; what it says of how it was drawn is kept, and this said besides.

    on_tile sees each tile, and stops the run by raising. Raises ValueError for options that are not for upscalers.
    """
    if request.batch_size > 1 or request.noise_level is not None or request.width or request.height:
        raise ValueError("batch_size, noise_level, width and height are not for pixel upscalers; give factor")
    size = upscaler.size(image, request.factor)
    made = upscaler.enlarged(image, size, request.tile or TILE, on_tile)
    made.__class__ = Picture  # keeps the recipe when it is saved
    made.info["parameters"] = upscaled_parameters(upscaler.name, image, made)
    made.info[RECIPE] = upscaled_recipe(upscaler, request, image)
    return made


def upscale(
    model: Model, resolved: Resolved[UpscaleRequest], image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw a picture larger, with a model that sees the small one beside x (Rombach et al. 2022, section 4.5).

    One that is told of noise, as Stable Diffusion's x4 upscaler and Imagen's (Saharia et al. 2022, section 2.2), sees it
    noised to noise_level. Imagen's draw pixels, and see the picture at their own size. Raises ValueError for another size,
    and for a noise_level that the model does not take.
    """
    if resolved.request.factor is not None or resolved.request.tile is not None:
        raise ValueError(f"factor and tile are for pixel upscalers, and {model.name} draws")
    given, image = image, in_mode(image, "RGB")
    c, level = model.unet.config, resolved.request.noise_level
    imagen = c.level_embedding
    if level is not None and c.num_classes is None and not imagen:
        raise ValueError(f"noise_level {level}: {model.name} is not told of noise")
    if level is not None and level > MOST and not imagen:
        raise ValueError(f"noise_level {level} is not in 0 to {MOST}, those of {model.name}")
    if level is None and (imagen or c.num_classes is not None):
        resolved = resolved.changed(noise_level=250 if imagen else 20)
    f = FACTOR if imagen else model.autoencoder.config.factor
    resolved = resolved.sized((image.width * f, image.height * f))
    request = resolved.request
    if request.size != (image.width * f, image.height * f):
        raise ValueError(f"width and height follow from the picture: {image.width * f}x{image.height * f}")
    with torch.inference_mode():
        pixels = to_pixels(image).to(model.device).expand(request.batch_size, -1, -1, -1)
        if imagen:
            pixels = F.interpolate(pixels, request.size[::-1], mode="bilinear", align_corners=True)
        extra_cond = {"concat": model.inputs.concat({"small picture": pixels})}
        if request.noise_level is not None:
            schedule = IMAGEN_AUGMENTATION if imagen else AUGMENTATION
            noisy = noised(pixels, request.seeds, request.noise_level, schedule)
            extra_cond = {
                "concat": model.inputs.concat({"small picture": noisy}),
                "vector": torch.full((request.batch_size,), request.noise_level, device=model.device),
            }
        return draw(model, resolved, start(model, resolved, extra_cond=extra_cond), on_step, {"image": given})


def noised(pixels: Tensor, seeds: list[int], level: int, schedule: NoiseSchedule = AUGMENTATION) -> Tensor:
    """Pixels (B, 3, H, W) at a noise level of the augmentation; the noise is independent of x's."""
    noise = NoiseSource([mixed(seed, -1) for seed in seeds], tuple(pixels.shape[1:]), pixels.device)()
    alpha_bar = schedule.alphas_cumprod[level].item()
    return alpha_bar**0.5 * pixels + (1 - alpha_bar) ** 0.5 * noise
