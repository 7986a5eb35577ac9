"""Start, sample and finish: what all tasks share. B batch, C channels, H W latent size, f pixels a latent pixel."""

from collections.abc import Mapping
from itertools import count

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import Conditioning, Denoiser
from inkwash.diffusion.noise import NoiseSource, centred, slerp
from inkwash.pipeline.denoising.denoiser import Watch, denoiser, sample
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.refiner import refine, switched_to_refiner
from inkwash.pipeline.denoising.sigmas import make_sigmas, noise_spread
from inkwash.pipeline.images import Picture, to_images
from inkwash.pipeline.latents import decode, encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.record.parameters import parameters, recipe
from inkwash.pipeline.request import Request

Begun = tuple[Denoiser, Tensor, Tensor, NoiseSource]  # what a sampler takes: D, sigmas, x, noise


def start(
    model: Model,
    resolved: Resolved[Request],
    sigmas: Tensor | None = None,
    extra_cond: Conditioning | None = None,
    extra_uncond: Conditioning | None = None,
    image_scale: float | None = None,
) -> Begun:
    """The guided denoiser, the sigmas (n+1,), the first x (B, C, H, W) and the noise that samplers draw on.

    sigmas: what to step through; by default the request's schedule over all noise levels. extra_cond: what a variant of
    the family sees of each picture beside x; a model for inpainting without it draws everywhere. extra_uncond,
    image_scale: as of `encode_plans` and `prompted`. Raises ValueError for a size that does not fit the model, and where
    an input that it sees is not given.
    """
    f, request = model.autoencoder.config.factor, resolved.request
    width, height = request.width or model.default_size, request.height or model.default_size
    for name, value in (("width", width), ("height", height)):
        if value % f:
            near = f"{value // f * f} or {(value // f + 1) * f}"
            raise ValueError(f"{name} {value} is not a multiple of {f}; the nearest that are: {near}")
    from_noise = sigmas is None
    sigmas = make_sigmas(request, request.steps, model.schedule) if sigmas is None else sigmas
    spread = noise_spread(request, sigmas, model.schedule) if from_noise else sigmas[0].item()
    shape = (model.autoencoder.config.latent_channels, height // f, width // f)
    noise = NoiseSource(request.seeds, shape, device=model.device)
    if extra_cond is None and model.inputs.kind == "inpainting":
        grey = torch.zeros(1, 3, height, width)
        extra_cond = masked_out(model, grey, torch.ones(1, 1, *shape[1:]), request.batch_size)
    size = (width, height)
    D = denoiser(model, request, resolved.prompts, sigmas, size, extra_cond or {}, extra_uncond, image_scale)
    if model.refiner is None and (request.refiner_strength or request.refiner_switch_at):
        raise ValueError("refiner_strength and refiner_switch_at need a refiner")
    if model.refiner and request.refiner_strength is None:
        D = switched_to_refiner(D, model, model.refiner, resolved, sigmas, size)
    return D, sigmas, first_noise(request, noise, f) * spread, noise


def masked_out(model: Model, pixels: Tensor, hole: Tensor, num: int) -> Conditioning:
    """Inputs of a model for inpainting: mask of where to draw (1, 1, H, W), and the latent of the rest, for num pictures.

    pixels: (1, 3, fH, fW), grey where they are not known.
    """
    hole, latent = hole.to(model.device), encode(model, pixels)
    seen = model.inputs.concat({"mask": hole, "known picture": latent})
    return {"concat": seen.expand(num, -1, -1, -1)}


def first_noise(request: Request, noise: NoiseSource, f: int) -> Tensor:
    """The first draw (B, C, H, W), varied and of another size where the request says so; A1111's rules."""
    drawn = noise()
    shape = noise.shape
    if request.seed_resize_from:
        width, height = request.seed_resize_from
        shape = (shape[0], max(1, height // f), max(1, width // f))
    inner = drawn if shape == noise.shape else NoiseSource(request.seeds, shape, noise.device)()
    if request.variation_strength:
        other = NoiseSource(request.variation_seeds, shape, noise.device)()
        inner = slerp(inner, other, request.variation_strength)
    return inner if shape == noise.shape else centred(inner, drawn)


def draw(
    model: Model,
    resolved: Resolved[Request],
    begun: Begun,
    on_step: Watch | None = None,
    pictures: Mapping[str, Image.Image] = {},
) -> list[Image.Image]:
    """The pictures that the request's sampler makes of what `start` gave. pictures: that were given, by their roles."""
    on_step = counted(on_step)
    return finish(model, resolved, sample(model, resolved.request, *begun, on_step), on_step, pictures)


def finish(
    model: Model,
    resolved: Resolved[Request],
    latent: Tensor,
    on_step: Watch | None = None,
    pictures: Mapping[str, Image.Image] = {},
) -> list[Image.Image]:
    """The pictures of a latent, which the refiner goes over first where the request gives it a strength."""
    request = resolved.request
    if model.refiner and request.refiner_strength is not None:
        latent = refine(model, model.refiner, resolved, latent, request.refiner_strength, on_step)
    return with_recipes(model, resolved, to_images(decode(model, latent, request.seamless)), pictures)


def with_recipes(
    model: Model, resolved: Resolved[Request], images: list[Image.Image], pictures: Mapping[str, Image.Image]
) -> list[Image.Image]:
    """The pictures of a request, each with its recipe. pictures: as of `draw`."""
    for k, image in enumerate(images):
        image.__class__ = Picture  # keeps the recipe when it is saved
        image.info["parameters"] = parameters(model, resolved, k)
        image.info[RECIPE] = recipe(model, resolved, k, pictures)
    return images


def counted(on_step: Watch | None) -> Watch:
    """Wrap on_step so that step indices run on across passes."""
    index = count()
    return lambda step: on_step and on_step(step._replace(index=next(index)))
