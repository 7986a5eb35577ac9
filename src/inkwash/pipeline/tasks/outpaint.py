"""Outpainting: extend a picture beyond its edges."""

from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import to_images, to_mask, to_pixels
from inkwash.pipeline.model import Model
from inkwash.pipeline.task_requests import OutpaintRequest
from inkwash.pipeline.tasks.inpaint import around, draw_masked


def outpaint(
    model: Model, resolved: Resolved[OutpaintRequest], image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """The picture, every pixel as it is, and drawn pixels at the sides that the request names."""
    return draw_masked(model, resolved, *extended(image, resolved.request), {"image": image}, on_step)


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
