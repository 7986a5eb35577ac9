"""Networks' inputs of CLIP's vectors: a picture's, or what a prior makes of a prompt. B batch, D width of the vectors."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Conditioning
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas
from inkwash.models.conditions import PictureEmbedder, VectorStatistics
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.model import Model
from inkwash.pipeline.names import BY_PRIOR
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import TextToImageRequest

# of the noise that a vector is given
AUGMENTATION = NoiseSchedule.from_betas(cosine_betas())
Seen = tuple[Conditioning, Conditioning]  # with the prompt, and without


def of_prompts(model: Model, resolved: Resolved[TextToImageRequest]) -> Seen | tuple[None, None]:
    """The model's inputs for the vectors that its prior makes of the prompts, or twice None where it sees no vectors.

    A negative prompt is the decoder's, where that reads text; else the prior starts from it, and its vector stands in place
    of zeros (Razzhigaev et al. 2023). Raises ValueError for options of a prior that the model does not have, and for a prior
    that nothing sees the vectors of.
    """
    request, prior = resolved.request, model.prior
    if prior is not None and model.inputs.needed not in BY_PRIOR:
        if all(control.image is not None or control.face is not None for control in request.controls):
            raise ValueError(
                f"prior {prior.name}: {model.name} draws by words; an IP-Adapter without a picture sees what a prior makes"
            )
        if request.noise_level is not None:
            raise ValueError(f"noise_level {request.noise_level}: {model.name} is not told of noise")
        return None, None
    if prior is None:
        if given := [
            name
            for name in ("prior_prompt", "prior_steps", "prior_cfg_scale", "noise_level")
            if request.differs(name)
        ]:
            raise ValueError(f"{given[0]} {getattr(request, given[0])}: {model.name} draws without a prior")
        return None, None
    texts, negatives = read_by_prior(request, resolved.prompts.texts), request.negative_prompts
    unread = any(negatives) and not model.text_encoders
    vectors = partial(vectors_of, model, request, negatives=negatives if unread else ())
    return seen_of(
        model, vectors(texts), request.seeds, request.noise_level, vectors(negatives) if unread else None
    )


def read_by_prior(request: TextToImageRequest, texts: Sequence[str]) -> list[str]:
    """The texts of the pictures that a prior reads. texts: their prompts."""
    return [request.prior_prompt] * len(texts) if request.prior_prompt else list(texts)


def vectors_of(
    model: Model, request: TextToImageRequest, texts: Sequence[str], negatives: Sequence[str] = ()
) -> Tensor:
    """The vectors (B, D) that the model's prior makes of texts, starting from the negative ones."""
    assert model.prior is not None
    how = (request.prior_steps, request.prior_cfg_scale, negatives, model.device)
    return model.prior(texts, request.seeds, *how).float()


def imagined_by(model: Model, request: Request, texts: Sequence[str]) -> Callable[[], Tensor] | None:
    """Return a function that makes vectors (B, D) of texts for controls without a picture; None without a prior, and for
    tasks other than text to image."""
    if model.prior is None or not isinstance(request, TextToImageRequest):
        return None
    return partial(vectors_of, model, request, read_by_prior(request, texts))


def seen_of(
    model: Model,
    vectors: Tensor,
    seeds: Sequence[int],
    noise_level: int | None = None,
    unwanted: Tensor | None = None,
) -> Seen:
    """The model's inputs for CLIP's vectors (B, D), and without them: zeros, or what it sees of unwanted ones.

    Raises ValueError for vectors of another width, and for a noise_level that the model does not take.
    """
    stage = model.cond_stage
    assert isinstance(stage, PictureEmbedder | VectorStatistics)  # `Model.inputs`
    noised = isinstance(stage, VectorStatistics) or stage.config.noised
    if noise_level is not None and not noised:
        raise ValueError(f"noise_level {noise_level}: {model.name} is not told of noise")
    width = (model.unet.config.vector_dim or 0) // 2 if noised else model.unet.config.context_dim
    if vectors.shape[1] != width:
        raise ValueError(f"{model.name} sees vectors of {width} numbers, and these have {vectors.shape[1]}")

    def seen(some: Tensor) -> Conditioning:
        made = (
            {"vector": noisy(stage, some, seeds, noise_level or 0)} if noised else {"context": some[:, None]}
        )
        return {name: value.to(model.device, model.dtype) for name, value in made.items()}

    cond = seen(vectors)
    without = {name: torch.zeros_like(value) for name, value in cond.items()}
    return cond, without if unwanted is None else seen(unwanted)


def noisy(
    stage: PictureEmbedder | VectorStatistics, vectors: Tensor, seeds: Sequence[int], level: int
) -> Tensor:
    """Vectors (B, D) with the noise of a level, and what says its level: (B, 2 D)."""
    noise = NoiseSource([mixed(seed, -1) for seed in seeds], tuple(vectors.shape[1:]), vectors.device)()
    mean, std = (value.to(vectors.device, torch.float32) for value in (stage.mean, stage.std))
    levels = torch.full((len(vectors),), level, device=vectors.device)
    return with_noise(vectors, noise, levels, mean, std)


def with_noise(vectors: Tensor, noise: Tensor, levels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Vectors (B, D) with noise (B, D) of levels (B,) in 0 to 999, and what says these: (B, 2 D).

    mean, std: of vectors, (1, D) or (D,).
    """
    alpha_bar = AUGMENTATION.alphas_cumprod[levels.cpu()].to(levels.device)[:, None]
    signal, spread = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    noised = signal * ((vectors - mean) / std) + spread * noise
    return torch.cat([noised * std + mean, timestep_embedding(levels, vectors.shape[1])], dim=1)
