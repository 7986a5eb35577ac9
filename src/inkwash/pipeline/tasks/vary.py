"""A picture's meaning to other pictures: Stable unCLIP and image variations. D width of CLIP's vectors."""

import torch
from PIL import Image
from torch import Tensor

from inkwash.models.conditions import PictureEmbedder
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.vectors import seen_of
from inkwash.pipeline.images import to_clip
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import VaryRequest


def vary(
    model: Model,
    resolved: Resolved[VaryRequest],
    image: Image.Image,
    second: Image.Image | None = None,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Draw what CLIP sees in a picture, or between two, with a model that is conditioned by its vectors.

    Source: Ramesh et al. 2022, sections 3.1 and 3.2, whose decoders Stable unCLIP and SD1 image variations are. Raises
    ValueError for a noise_level that the model does not take, and for a mix without a second picture.
    """
    stage, request = model.cond_stage, resolved.request
    if second is None and request.differs("mix"):
        raise ValueError(f"mix {request.mix:g}: there is no second picture to go to")
    assert isinstance(stage, PictureEmbedder)  # `Model.inputs`
    pictures = {"image": image} | ({"second": second} if second else {})
    with torch.inference_mode():
        side = stage.config.vision.image_size
        pixels = [to_clip(each, side).to(model.device, model.dtype) for each in pictures.values()]
        vectors = [stage(each).float() for each in pixels]
        vector = between(vectors[0], vectors[1], request.mix) if second else vectors[0]
        seen = seen_of(
            model, vector.expand(request.batch_size, -1), request.seeds, noise_level=request.noise_level
        )
        return draw(model, resolved, start(model, resolved, None, *seen), on_step, pictures)


def between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Interpolate between vectors (1, D) along the sphere (Shoemake 1985; Ramesh et al. 2022): share 0 is the first."""
    angle = torch.acos(torch.cosine_similarity(first, second).clamp(-1, 1))[:, None]
    if angle.sin().abs().item() < 1e-4:
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / angle.sin()
