"""What is to be where, and a picture of it. B batch, C channels, H W latent size, D context width."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import torch
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from inkwash.models.bert import BERT
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import worded
from inkwash.pipeline.request import Drawing, number
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.tasks.image_to_image import size_of, sized
from inkwash.prompts.conditioning import Reading, encode
from inkwash.prompts.language import LANGUAGES
from inkwash.weights.bytes.paths import nearest
from inkwash.weights.families import variant_of

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class Box(NamedTuple):
    """Something's left, top, right and bottom, in parts of the picture, and what it is."""

    x0: float
    y0: float
    x1: float
    y1: float
    what: Annotated[str, BeforeValidator(str)]  # words, or the number of a category

    def __str__(self) -> str:
        return f"{','.join(map(number, self[:4]))}={self.what}"


def read_box(text: Any) -> Any:
    """The box of a text such as 0,0.5,1,1=a red book. Raises ValueError for another one."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"([^,=]+),([^,=]+),([^,=]+),([^,=]+)=(.+)", text)
    try:
        return inside(Box(*map(float, match.groups()[:4]), match[5].strip()))  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        wanted = "x0,y0,x1,y1=what, with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        raise ValueError(f"{text!r} is no box; it is written {wanted}") from None


def inside(box: Box) -> Box:
    if not (0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 and box.what):
        raise ValueError(f"the box {box} has no place between 0 and 1, or names nothing")
    return box


def numbered_by(names: Sequence[str], boxes: Sequence[Box]) -> tuple[Box, ...]:
    """The boxes with the numbers of their categories, whose names these are in order; what is a number stays.

    Raises ValueError for a name that is none of them.
    """
    numbers = {name.strip(): str(i) for i, name in reversed(list(enumerate(names)))}
    for box in boxes:
        if not box.what.isdecimal() and box.what not in numbers:
            raise ValueError(f"box {box}: there is no category {box.what!r}{nearest(box.what, numbers)}")
    return tuple(box._replace(what=numbers.get(box.what, box.what)) for box in boxes)


class LayoutRequest(Drawing):
    """The prompt is empty of models that see no text."""

    task: ClassVar[str] = "layout_to_image"
    prompt: str | tuple[str, ...] = ""
    # what is later lies above
    boxes: tuple[Annotated[Box, BeforeValidator(read_box), AfterValidator(inside)], ...] = Field(min_length=1)

    def told(self, k: int) -> dict[str, object]:
        return super().told(k) | {"Boxes": "; ".join(map(str, self.boxes))}


@worded
def layout_to_image(
    model: "Model", request: LayoutRequest, on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw what the boxes name where they lie, with a model for that.

    Latent diffusion's knows categories by their numbers (Rombach et al. 2022, section 4.3.1), one that sees a map of
    text vectors any words (SpaText, Avrahami et al. 2023). Raises ValueError for another model, for a category that
    it does not know, and for more boxes than it sees.
    """
    request = sized(request, (model.default_size, model.default_size))
    with torch.inference_mode():
        if isinstance(model.cond_stage, BERT):
            c = model.cond_stage.config
            tokens = torch.tensor([box_tokens(request.boxes, c.max_length, c.vocab_size)])
            given = {"context": model.cond_stage(tokens.to(model.device))[0]}
        elif variant_of(model.unet.config) == "layout":
            given = {"concat": painted(model, request.boxes, size_of(request))}
        else:
            raise ValueError(f"{model.name} sees no boxes: a model for layouts does")
        given = {key: value.expand(request.batch_size, -1, *value.shape[2:]) for key, value in given.items()}
        without = {key: torch.zeros_like(value) for key, value in given.items()}
        return draw(model, request, start(model, request, given=given, without=without), on_step)


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


def painted(model: "Model", boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """A map (1, D, H, W) that holds the text vector of what is in a box wherever the box is, and 0 elsewhere.

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
