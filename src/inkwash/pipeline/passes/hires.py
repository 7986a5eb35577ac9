"""The second pass of a picture, larger than the first. B batch, C channels, H W latent size."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.diffusion.schedules import tail
from inkwash.pipeline.denoising.denoiser import Watch, encode, sample
from inkwash.pipeline.images import to_images, to_pixels
from inkwash.pipeline.request import Request
from inkwash.pipeline.run import start

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


def enlarge(model: "Model", request: Request, latent: Tensor, on_step: Watch | None) -> Tensor:
    """A latent made request.hires times larger and drawn over.

    All of hires_steps are taken, of a finer schedule, with the noise of the same seeds at the new size, as A1111 does.
    """
    f = model.autoencoder.config.factor
    height, width = (int(side * f * request.hires) // f * f for side in latent.shape[2:])
    larger = request.model_copy(update={"width": width, "height": height})
    make = request.make_sigmas
    num_steps = request.hires_steps or request.steps
    sigmas = tail(num_steps, request.hires_strength, "exact", lambda n: make(n, model.schedule))
    D, sigmas, x, noise = start(model, larger, sigmas)
    if request.hires_strength < 1:
        x = x + resized(model, latent, (width, height), request.hires_upscaler)
    return sample(larger, D, sigmas, x, noise, on_step)


def resized(model: "Model", latent: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """A latent (B, C, H, W) for pictures of (width, height): itself interpolated, or its pictures."""
    f = model.autoencoder.config.factor
    if how.startswith("latent"):
        smooth = how.endswith("antialiased")
        mode = (
            how.removeprefix("latent").removesuffix("antialiased").strip("_").replace("_", "-") or "bilinear"
        )
        return F.interpolate(latent, size=(size[1] // f, size[0] // f), mode=mode, antialias=smooth)
    kind = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}[how]
    images = to_images(model.autoencoder.decode(latent.to(model.dtype)))
    return torch.cat([encode(model, to_pixels(image.resize(size, kind))) for image in images])
