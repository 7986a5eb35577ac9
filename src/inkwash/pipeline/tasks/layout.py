"""Pictures of layouts, which say which objects are where. B batch, C channels, H W latent size, D context width."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from inkwash.models.bert import BERT
from inkwash.pipeline.boxes import Box
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import LayoutRequest
from inkwash.prompts.conditioning import Reading, encode
from inkwash.prompts.language import LANGUAGES


def layout_to_image(
    model: Model, resolved: Resolved[LayoutRequest], on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw what the boxes name where they lie, with a model for that.

    Latent diffusion's knows categories by their numbers (Rombach et al. 2022, section 4.3.1), one that sees a map of
    text vectors any words (SpaText, Avrahami et al. 2023). Raises ValueError
    for a category that it does not know, and for more boxes than it sees.
    """
    resolved = resolved.sized((model.default_size, model.default_size))
    request = resolved.request
    with torch.inference_mode():
        if isinstance(model.cond_stage, BERT):
            c = model.cond_stage.config
            tokens = torch.tensor([box_tokens(request.boxes, c.max_length, c.vocab_size)])
            extra_cond = {"context": model.cond_stage(tokens.to(model.device))[0]}
        else:
            extra_cond = {
                "concat": model.inputs.concat({"boxes": painted(model, request.boxes, request.size)})
            }
        extra_cond = {
            key: value.expand(request.batch_size, -1, *value.shape[2:]) for key, value in extra_cond.items()
        }
        extra_uncond = {key: torch.zeros_like(value) for key, value in extra_cond.items()}
        begun = start(model, resolved, extra_cond=extra_cond, extra_uncond=extra_uncond)
        return draw(model, resolved, begun, on_step)


def box_tokens(boxes: Sequence[Box], length: int, vocab_size: int) -> list[int]:
    """Latent diffusion's tokens of a layout: of each box its category and two corners, then those of the whole.

    A corner is the number of its place in a grid of as many rows as the vocabulary allows, left to right, then down;
    the last token stands for no box. Training shuffled the boxes. Source: Jahn et al. 2021, section 3.2. Raises
    ValueError for a category that is no number below vocab_size - 1, and for too many boxes.
    """
    sections, none, most = math.isqrt(vocab_size), vocab_size - 1, (length - 2) // 3
    if len(boxes) > most:
        raise ValueError(f"{len(boxes)} boxes are more than the {most} that the model sees")
    tokens = []
    for box in boxes:
        if not box.what.isdecimal() or int(box.what) >= none:
            raise ValueError(f"box {box}: {box.what!r} is not the number of a category, 0 to {none - 1}")
        corners = ((box.x0, box.y0), (box.x1, box.y1))
        rows = [[round(side * (sections - 1)) for side in corner] for corner in corners]
        tokens += [int(box.what), *(y * sections + x for x, y in rows)]
    return [*tokens, *[none] * (3 * (most - len(boxes))), 0, sections**2 - 1]


def painted(model: Model, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """A map (1, D, H, W) of the text vector of each box's object inside the box, and 0 outside of all.

    size: of the picture, width and height in pixels. Latent pixels that a box touches are its own.
    """
    width, height = (side // model.autoencoder.config.factor for side in size)
    vectors = encode(model.text_encoders[:1], [box.what for box in boxes], Reading(LANGUAGES["plain"]))
    canvas = torch.zeros(1, model.unet.config.context_dim or 0, height, width, device=model.device)
    for x0, y0, x1, y1, what in boxes:
        # what rounding alone puts beyond a line is not
        left, top = (math.floor(side + 1e-6) for side in (x0 * width, y0 * height))
        right, bottom = (math.ceil(side - 1e-6) for side in (x1 * width, y1 * height))
        canvas[0, :, top:bottom, left:right] = vectors[what][1].to(canvas)[:, None, None]
    return canvas
