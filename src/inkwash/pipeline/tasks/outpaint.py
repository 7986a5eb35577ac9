"""A picture and what lies around it."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from PIL import Image
from pydantic import Field, model_validator

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import worded
from inkwash.pipeline.images import to_images, to_mask, to_pixels
from inkwash.pipeline.names import FILL_NAMES
from inkwash.pipeline.request import one_of
from inkwash.pipeline.tasks.inpaint import InpaintRequest, around, inpainted

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class OutpaintRequest(InpaintRequest):
    """By how many pixels a picture goes on at each side, and how that is drawn."""

    task: ClassVar[str] = "outpaint"
    strength: float = Field(0.8, gt=0, le=1, allow_inf_nan=False)  # less keeps the colours of the edge
    mask_blur: float = Field(8.0, ge=0, le=64, allow_inf_nan=False)  # pixels over which they fade, outward
    fill: Annotated[str, one_of(FILL_NAMES)] = "around"
    left: int = Field(0, ge=0, le=4096)
    top: int = Field(0, ge=0, le=4096)
    right: int = Field(0, ge=0, le=4096)
    bottom: int = Field(0, ge=0, le=4096)

    @model_validator(mode="after")
    def somewhere(self) -> Self:
        if not (self.left or self.top or self.right or self.bottom):
            raise ValueError("left, top, right and bottom are 0, so there is nothing to draw")
        return self


@worded
def outpaint(
    model: "Model", request: OutpaintRequest, image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """The picture, every pixel as it is, and drawn pixels at the sides that the request names."""
    return inpainted(model, request, *extended(image, request), {"image": image}, on_step)


def extended(image: Image.Image, request: OutpaintRequest) -> tuple[Image.Image, Image.Image]:
    """The picture with room at its sides, where its colours go on, and the mask of the room."""
    size = (request.left + image.width + request.right, request.top + image.height + request.bottom)
    canvas, mask = Image.new("RGB", size), Image.new("L", size, 255)
    place = (request.left, request.top)
    canvas.paste(image, place)
    mask.paste(0, (*place, place[0] + image.width, place[1] + image.height))
    canvas = to_images(around(to_pixels(canvas), 1 - to_mask(mask)))[0]
    canvas.paste(image, place)
    return canvas, mask
