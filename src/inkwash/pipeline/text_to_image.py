"""Prompt to picture. B batch, C channels, H W latent size."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser, precondition
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS, Step
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.guiding import guide
from inkwash.pipeline.metadata import RECIPE
from inkwash.pipeline.recipe import parameters, recipe
from inkwash.pipeline.request import Request
from inkwash.prompts.conditioning import guided

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


def text_to_image(
    model: "Model", request: Request, on_step: Callable[[Step], None] | None = None
) -> list[Image.Image]:
    """Draw `request.batch_size` pictures; `on_step` sees each step, and stops the run by raising.

    Image k depends on its own seed alone, so it equals the one drawn alone with seed + k, up to the rounding
    of batched arithmetic. Each image's info holds A1111's `parameters` text.
    """
    with torch.inference_mode():
        return draw(model, request, *start(model, request), on_step)


def start(
    model: "Model", request: Request, sigmas: Tensor | None = None
) -> tuple[Denoiser, Tensor, Tensor, NoiseSource]:
    """The guided denoiser, the sigmas (n+1,), the first x (B, C, H, W) and the noise that samplers draw on.

    sigmas: what to step through; by default the request's schedule over all noise levels.
    """
    taken, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if taken != given:
        raise ValueError(
            f"{model.name} sees {taken} channels and not a latent's {given} alone: it is one for inpainting, depth, "
            "instructions or upscaling, which is opened, inspected and converted, but not drawn with so far"
        )
    f = model.autoencoder.config.factor
    width, height = request.width or model.default_size, request.height or model.default_size
    for name, value in (("width", width), ("height", height)):
        if value % f:
            near = f"{value // f * f} or {(value // f + 1) * f}"
            raise ValueError(f"{name} {value} is not a multiple of {f}; the nearest that are: {near}")
    sigmas = SCHEDULES[request.schedule](request.steps, model.schedule) if sigmas is None else sigmas
    shape = (model.autoencoder.config.latent_channels, height // f, width // f)
    seeds = [request.seed + k for k in range(request.batch_size)]
    noise = NoiseSource(seeds, shape, device=model.device)
    D = guided(
        precondition(model.network(), model.prediction, model.schedule),
        model.text_encoders,
        request.prompts,
        [request.negative_prompt] * request.batch_size,
        sigmas,
        request.cfg_scale,
        embedded_sizes(model.sizes, request, (width, height)),
        model.zero_empty,
        request.cfg_batched,
        request.perp_neg,
    )
    D = guide(D, model, request, request.cfg_scale, sigmas)
    return D, sigmas, noise() * sigmas[0].item(), noise


def embedded_sizes(num: int, request: Request, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """What SDXL and its refiner are told of pictures, and of their negatives: height before width (Podell et al.
    2023, section 2.2). None for a model that is told nothing."""
    if not num:
        return None
    original, target = request.original_size or size, request.target_size or size
    left, top = request.crop
    common = [original[1], original[0], top, left]
    scores = [[target[1], target[0]]] * 2 if num == 6 else [[request.aesthetic], [request.negative_aesthetic]]
    wanted, unwanted = (timestep_embedding(torch.tensor([*common, *end]), 256).flatten() for end in scores)
    return wanted, unwanted


def draw(
    model: "Model",
    request: Request,
    D: Denoiser,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    on_step: Callable[[Step], None] | None = None,
    **fields: object,
) -> list[Image.Image]:
    """The pictures that the sampler makes of x. fields: what their parameters say besides."""
    for step in SAMPLERS[request.sampler](D, x, sigmas, noise=noise):
        x = step.x
        if on_step:
            on_step(step)
    images = to_images(model.autoencoder.decode(x.to(model.dtype)))
    for k, image in enumerate(images):
        image.info["parameters"] = parameters(model, request, k, image.size, **fields)
        image.info[RECIPE] = recipe(model, request, k)
    return images


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of pixels (B, 3, H, W), clamped to [-1, 1]. Raises FloatingPointError where one is not finite."""
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the decoded picture holds values that are not finite")
    whole = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in whole]
