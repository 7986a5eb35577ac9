"""A map of labels to a picture. B batch, C channels, H W latent size."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.models.conditions import SemanticRescaler
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import nearest_size
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import SemanticRequest


def semantic_to_image(
    model: Model, resolved: Resolved[SemanticRequest], labels: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw what a map of labels shows, with a model for that (Rombach et al. 2022, section 4.3.2).

    labels: in mode L, each pixel's value its label. Raises ValueError for a label that it does not know.
    """
    assert isinstance(model.cond_stage, SemanticRescaler)  # the table of tasks has checked it
    f = model.autoencoder.config.factor
    resolved = resolved.sized(nearest_size(labels, f))
    request = resolved.request
    with torch.inference_mode():
        width, height = (side // f for side in request.size)
        seen = model.cond_stage(
            one_hot(labels, model.cond_stage, (width, height)).to(model.device, model.dtype)
        )
        seen = model.inputs.concat({"labels": seen.float()})
        extra_cond = {"concat": seen.expand(request.batch_size, -1, -1, -1)}
        return draw(
            model, resolved, start(model, resolved, extra_cond=extra_cond), on_step, {"labels": labels}
        )


def one_hot(labels: Image.Image, stage: SemanticRescaler, size: tuple[int, int]) -> Tensor:
    """The map as `stage` takes it for a latent of (width, height). Raises ValueError for a label that it has not."""
    c = stage.config
    if (most := int(np.array(labels).max())) >= c.num_labels:
        raise ValueError(f"the map has label {most}, and the model's are 0 to {c.num_labels - 1}")
    shown = labels.resize((size[0] << c.halvings, size[1] << c.halvings), Image.Resampling.NEAREST)
    numbers = torch.from_numpy(np.array(shown)).long()
    return F.one_hot(numbers, c.num_labels).permute(2, 0, 1)[None].float()
