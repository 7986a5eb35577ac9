"""The second pass of a picture, larger than the first. B batch, C channels, H W latent size."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import Conditioning
from inkwash.files import ModelFileError
from inkwash.pipeline.controls import in_pass
from inkwash.pipeline.denoising.denoiser import Watch, sample
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.images import to_images
from inkwash.pipeline.latents import decode, encode_image
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.upscaler import Upscaler, open_upscaler


def enlarge(
    model: Model,
    resolved: Resolved[TextToImageRequest],
    latent: Tensor,
    on_step: Watch | None,
    extra_cond: Conditioning | None = None,
    extra_uncond: Conditioning | None = None,
) -> Tensor:
    """A latent made request.hires times larger and drawn over. extra_cond, extra_uncond: as of `start`.

    All of hires_steps are taken, of a finer schedule, with the noise of the same seeds at the new size, as A1111 does.
    """
    f, request = model.autoencoder.config.factor, resolved.request
    height, width = (int(side * f * request.hires) // f * f for side in latent.shape[2:])
    larger = resolved.changed(width=width, height=height, controls=in_pass(request.controls, "hires"))
    sigmas = sigmas_for_strength(
        request, request.hires_strength, model.schedule, "exact", request.hires_steps
    )
    D, sigmas, x, noise = start(model, larger, sigmas, extra_cond, extra_uncond)
    if request.hires_strength < 1:
        x = x + resized(model, request, latent, (width, height))
    return sample(model, larger.request, D, sigmas, x, noise, on_step)


def resized(model: Model, request: TextToImageRequest, latent: Tensor, size: tuple[int, int]) -> Tensor:
    """A latent (B, C, H, W) for pictures of (width, height): itself interpolated, or its pictures, by a network or not."""
    f, how = model.autoencoder.config.factor, request.hires_upscaler
    if how.startswith("latent") and not request.upscaler_file:
        smooth = how.endswith("antialiased")
        mode = (
            how.removeprefix("latent").removesuffix("antialiased").strip("_").replace("_", "-") or "bilinear"
        )
        return F.interpolate(latent, size=(size[1] // f, size[0] // f), mode=mode, antialias=smooth)
    images = to_images(decode(model, latent, request.seamless))
    if request.upscaler_file:
        upscaler = upscaler_of(model, request.upscaler_file)
        larger = [upscaler.enlarged(image, size) for image in images]
    else:
        kind = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}[how]
        larger = [image.resize(size, kind) for image in images]
    return torch.cat([encode_image(model, image, size) for image in larger])


def upscaler_of(model: Model, path: Path) -> Upscaler:
    """A pixel upscaler on the model's device, which the model keeps open."""
    try:
        key = (path, path.stat().st_size, path.stat().st_mtime_ns)
    except OSError as error:
        raise ModelFileError(f"hires_upscaler {path}: {error.strerror}") from error
    if key not in model.upscalers:
        model.upscalers[key] = open_upscaler(path, model.device)
    return model.upscalers[key]
