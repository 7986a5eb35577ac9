"""A picture's meaning to other pictures: Stable unCLIP and image variations. B batch, D width of CLIP's vectors."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import Conditioning
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas
from inkwash.models.conditions import PictureEmbedder
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import to_clip
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import VaryRequest

# of the noise that a picture's vector is given
AUGMENTATION = NoiseSchedule.from_betas(cosine_betas())


def vary(
    model: Model,
    resolved: Resolved[VaryRequest],
    image: Image.Image,
    second: Image.Image | None = None,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Draw what CLIP sees in a picture, or between two, with a model that is conditioned by its vectors.

    Source: Ramesh et al. 2022, sections 3.1 and 3.2, whose decoders Stable unCLIP and SD1 image variations are. Raises
    ValueError for a noise_level that the model does not take.
    """
    stage, request = model.cond_stage, resolved.request
    assert isinstance(stage, PictureEmbedder)  # `Model.inputs`
    if request.noise_level is not None and not stage.config.noised:
        raise ValueError(f"noise_level {request.noise_level}: {model.name} is not told of noise")
    pictures = {"image": image} | ({"second": second} if second else {})
    with torch.inference_mode():
        side = stage.config.vision.image_size
        pixels = [to_clip(each, side).to(model.device, model.dtype) for each in pictures.values()]
        vectors = [stage(each).float() for each in pixels]
        vector = between(vectors[0], vectors[1], request.mix) if second else vectors[0]
        return draw_vectors(model, resolved, vector.expand(request.batch_size, -1), on_step, pictures)


def draw_vectors(
    model: Model,
    resolved: Resolved[VaryRequest],
    vectors: Tensor,
    on_step: Watch | None = None,
    pictures: Mapping[str, Image.Image] = {},
) -> list[Image.Image]:
    """Draw what CLIP's vectors (B, D) mean, such as those that a prior makes of texts. pictures: that they are of."""
    assert isinstance(model.cond_stage, PictureEmbedder)
    cond = conditions(model.cond_stage, vectors, resolved.request)
    cond = {name: value.to(model.device, model.dtype) for name, value in cond.items()}
    without = {name: torch.zeros_like(value) for name, value in cond.items()}
    begun = start(model, resolved, extra_cond=cond, extra_uncond=without)
    return draw(model, resolved, begun, on_step, pictures)


def conditions(stage: PictureEmbedder, vector: Tensor, request: VaryRequest) -> Conditioning:
    """What the network sees of vectors (B, D): a context of one token, or for unCLIP the vector and its noise level."""
    if not stage.config.noised:
        return {"context": vector[:, None]}
    level = request.noise_level or 0
    noise = NoiseSource([mixed(seed, -1) for seed in request.seeds], tuple(vector.shape[1:]), vector.device)()
    alpha_bar = AUGMENTATION.alphas_cumprod[level].item()
    mean, std = stage.mean.float(), stage.std.float()
    noised = alpha_bar**0.5 * (vector - mean) / std + (1 - alpha_bar) ** 0.5 * noise
    told = timestep_embedding(torch.full((len(vector),), level, device=vector.device), vector.shape[1])
    return {"vector": torch.cat([noised * std + mean, told], dim=1)}


def between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """From one vector (1, D) to another along the sphere (Shoemake 1985; Ramesh et al. 2022): 0 is the first."""
    angle = torch.acos(torch.cosine_similarity(first, second).clamp(-1, 1))[:, None]
    if angle.sin().abs().item() < 1e-4:
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / angle.sin()
