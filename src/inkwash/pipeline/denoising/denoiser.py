"""A model and a request to a denoiser, and through its steps.

B batch, C channels, H W latent size, f pixels a latent pixel.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser, clipped, precondition
from inkwash.diffusion.guidance import Guided, compose, threshold_pixels
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS, Sampler, Step
from inkwash.models.autoencoder import PixelConfig
from inkwash.models.conditions import ClassEmbedder, PictureEmbedder, VectorStatistics
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.denoising.control import Controls
from inkwash.pipeline.denoising.deep_cache import DeepCache
from inkwash.pipeline.denoising.few_steps import embedded_scale
from inkwash.pipeline.denoising.guidance import guide
from inkwash.pipeline.denoising.prompted import prompted
from inkwash.pipeline.denoising.prompting import Prompts
from inkwash.pipeline.denoising.regions import in_regions
from inkwash.pipeline.denoising.token_merging import TokenMerging
from inkwash.pipeline.denoising.vectors import imagined_by
from inkwash.pipeline.denoising.windows import windowed_or_seamless
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request
from inkwash.prompts.conditioning import encode_plans, plan

Watch = Callable[[Step], None]  # sees each step, and stops the run by raising


def denoiser(
    model: Model,
    request: Request,
    prompts: Prompts,
    sigmas: Tensor,
    size: tuple[int, int],
    extra_cond: Conditioning,
    extra_uncond: Conditioning | None = None,
    image_scale: float | None = None,
) -> Guided:
    """The model's denoiser, guided by the request's prompts.

    prompts: as the model reads them. size: width and height in pixels. The others: as of `encode_plans` and `prompted`.
    """
    if (needed := model.inputs.needed) and not extra_cond:
        raise ValueError(f"{model.name} needs an input of kind {needed} beside the latent, and got none")
    f = model.autoencoder.config.factor
    imagined = imagined_by(model, request, prompts.texts)
    controls = Controls(model, request, sigmas, (size[1] // f, size[0] // f), imagined)
    network = model.network(controls)
    network = TokenMerging(network, model.unet, request.token_merging) if request.token_merging else network
    network = network if request.deep_cache == 1 else DeepCache(network, request.deep_cache)
    denoise = precondition(network, model.prediction, model.schedule)
    denoise = windowed_or_seamless(denoise, model, request, controls.networks)
    denoise = controls.gated(denoise)
    stage = model.autoencoder.config
    threshold = stage.threshold if isinstance(stage, PixelConfig) else None
    if isinstance(stage, PixelConfig) and threshold is None:
        denoise = clipped(denoise)
    if not model.text_encoders:
        extra_cond, extra_uncond = controls.beside(extra_cond, extra_uncond)
        guides = isinstance(model.cond_stage, ClassEmbedder | PictureEmbedder | VectorStatistics)
        scale = request.cfg_scale if guides else 1.0
        D = unprompted(denoise, model, request, extra_cond, extra_uncond, scale)
        return guide(D, model, request, scale, sigmas)
    if not extra_cond and model.unet.config.num_classes is not None:
        extra_cond, extra_uncond = (
            {"vector": label.expand(request.batch_size)} for label in labels(model, request)
        )
    elif request.class_label is not None:
        raise ValueError(f"class_label {request.class_label}: {model.name} knows words and not classes")
    scale = request.cfg_scale
    if dim := model.unet.config.time_cond_dim:  # the network guides by itself
        given = {"time_cond": embedded_scale(scale, dim, request.batch_size).to(model.device)}
        extra_cond, scale = {**extra_cond, **given}, 1.0
        extra_uncond = None if extra_uncond is None else {**extra_uncond, **given}
    extra_cond, extra_uncond = controls.beside(extra_cond, extra_uncond)
    follow = partial(followed, denoise, model, request, prompts, sigmas, size, scale, image_scale)
    D = follow(prompts.texts, extra_cond, extra_uncond)
    if request.regions:
        D = in_regions(D, follow, request, (size[1] // f, size[0] // f), extra_cond, extra_uncond)
    return threshold_pixels(D, *threshold) if threshold else D


def followed(
    denoise: ConditionedDenoiser,
    model: Model,
    request: Request,
    prompts: Prompts,
    sigmas: Tensor,
    size: tuple[int, int],
    scale: float,
    image_scale: float | None,
    texts: Sequence[str],
    cond: Conditioning,
    uncond: Conditioning | None,
) -> Guided:
    """Return the denoiser that follows one text a picture, with the request's guidance.

    cond, uncond: the network's other inputs, as of `encode_plans`. The others: as of `denoiser` and `prompted`.
    """
    each = zip(texts, request.negative_prompts, prompts.readings, strict=True)
    stages = encode_plans(
        prompts.encode,
        [plan(*one, len(sigmas) - 1, request.perp_neg) for one in each],
        embedded_sizes(model.sizes, request, size),
        model.zero_empty,
        cond,
        uncond,
    )
    batched, perpendicular = request.cfg_batched, request.perp_neg > 0
    D = prompted(denoise, stages, prompts.readings, sigmas, scale, batched, perpendicular, image_scale)
    return guide(D, model, request, scale, sigmas)


def labels(model: Model, request: Request) -> tuple[Tensor, Tensor]:
    """The request's class, and the last one, which stands for none where a model was trained so: each ().

    Raises ValueError for a class that is missing or too many.
    """
    stage = model.cond_stage
    num = stage.config.num_classes if isinstance(stage, ClassEmbedder) else model.unet.config.num_classes
    label, last = request.class_label, (num or 0) - 1
    if label is None or label > last:
        raise ValueError(f"class_label {label} is not one of {model.name}'s 0 to {last}")
    wanted, unwanted = torch.tensor([label, last], device=model.device)
    return wanted, unwanted


def unprompted(
    denoise: ConditionedDenoiser,
    model: Model,
    request: Request,
    extra_cond: Conditioning,
    extra_uncond: Conditioning | None,
    scale: float,
) -> Guided:
    """The denoiser of a model without text, guided by its inputs, and by a class where it knows classes.

    Guidance goes from extra_uncond, or from the last class (latent diffusion's cin256). Raises ValueError for a prompt or a
    region, and for a class that is missing or too many.
    """
    if request.regions:
        raise ValueError(f"regions: {model.name} sees no text; give no regions")
    if model.prior is None and (any(request.prompts) or any(request.negative_prompts)):
        raise ValueError(f"{model.name} sees no text; give an empty prompt, and no negative one")
    stage = model.cond_stage
    conds, unconds = (
        [{key: rows[k] for key, rows in given.items()} for k in range(request.batch_size)]
        for given in (extra_cond, extra_cond if extra_uncond is None else extra_uncond)
    )
    if isinstance(stage, ClassEmbedder):
        wanted, unwanted = stage(torch.stack(labels(model, request)))
        conds, unconds = ([row | {"context": made} for row in conds] for made in (wanted, unwanted))
    elif request.class_label is not None:
        raise ValueError(f"class_label {request.class_label}: {model.name} knows no classes")
    elif stage is not None and not extra_cond:
        name = type(stage).__name__
        raise ValueError(f"{model.name} draws by what its {name} makes, and nothing was given to it")
    return compose(denoise, [[(cond, 1.0)] for cond in conds], unconds, scale, request.cfg_batched)


def embedded_sizes(num: int, request: Request, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Size conditioning of SDXL and its refiner, for pictures and for their negatives: height before width (Podell et al.
    2023, section 2.2). None for a model without it."""
    if not num:
        return None
    original, target = request.original_size or size, request.target_size or size
    left, top = request.crop
    common = [original[1], original[0], top, left]
    scores = [[target[1], target[0]]] * 2 if num == 6 else [[request.aesthetic], [request.negative_aesthetic]]
    wanted, unwanted = (size_embedding([*common, *end]) for end in scores)
    return wanted, unwanted


def size_embedding(numbers: Sequence[float]) -> Tensor:
    """Sizes, corners and scores as SDXL sees them: 256 values each, one after the other."""
    return timestep_embedding(torch.tensor(numbers), 256).flatten()


def sampler_of(model: Model, request: Request) -> Sampler:
    """The request's sampler, with its eta, and with the model's schedule where it reads timesteps."""
    options: dict[str, Any] = {} if request.eta is None else {"eta": request.eta}
    if request.sampler == "tcd":
        options["schedule"] = model.schedule
    return partial(SAMPLERS[request.sampler], **options)


def sample(
    model: Model,
    request: Request,
    D: Denoiser,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    on_step: Watch | None = None,
) -> Tensor:
    """The latent that the request's sampler makes of x, which D, of this model, denoises."""
    for step in sampler_of(model, request)(D, x, sigmas, noise=noise):
        x = step.x
        if on_step:
            on_step(step)
    return x
