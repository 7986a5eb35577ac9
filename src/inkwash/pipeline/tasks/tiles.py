"""A large picture drawn over in tiles, each as a picture of its own."""

import math
from typing import Any

from PIL import Image

from inkwash.pipeline.denoising.control import sees_a_map
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.hints import FACTOR, fit
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import fitted, nearest_size
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import counted, with_recipes
from inkwash.pipeline.task_requests import ImageRequest, InpaintRequest
from inkwash.pipeline.tasks.inpaint import draw_masked
from inkwash.pipeline.tiles import TileLayout


def draw_tiles(
    model: Model, resolved: Resolved[ImageRequest], image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Draw a picture over by the prompt, tile by tile, and blend the tiles.

    Each is drawn from the picture and its own noise of the request's seed; the part that others draw is kept known. So
    memory is that of a tile, and details are as large as the model learnt them. Controls' pictures are cut, too.
    """
    resolved = resolved.sized(nearest_size(image, multiple_of(model)))
    request, watch = resolved.request, counted(on_step)
    whole, layout = fitted(image, request.size), layout_of(request, multiple_of(model))
    blank = whole.copy()
    blank.info = {}  # what its file says of it is not said of what is drawn
    made = [blank] * request.batch_size
    for k in range(layout.num):
        part = Resolved(
            as_inpainting(cut_controls(model, request, layout, k)),
            resolved.prompts,
            resolved.refiner_prompts,
            resolved.files,
        )
        drawn = draw_masked(model, part, layout.cut(whole, k), layout.mask(k, False), {}, watch)
        made = [layout.merged(one, k, tile) for one, tile in zip(made, drawn, strict=True)]
    return with_recipes(model, resolved, made, {"image": image})


def multiple_of(model: Model) -> int:
    """The number that divides the sides of pictures and tiles: a multiple of the first stage's factor and of a hint's."""
    return math.lcm(FACTOR, model.autoencoder.config.factor)


def layout_of(request: ImageRequest, multiple: int = FACTOR) -> TileLayout:
    """The tiles of a request that has a size."""
    assert request.tile
    width, height = request.size
    least = -(-request.tile // multiple) * multiple
    return TileLayout((height, width), least, request.tile_padding, request.tile_blending, multiple)


def as_inpainting(request: ImageRequest) -> InpaintRequest:
    """The request for one of its tiles."""
    shared = InpaintRequest.model_fields.keys() & type(request).model_fields.keys() - {"width", "height"}
    values: dict[str, Any] = {name: getattr(request, name) for name in shared}
    return InpaintRequest.model_construct(**values, mask_blur=0.0, blend_mask=True)


def cut_controls(model: Model, request: ImageRequest, layout: TileLayout, k: int) -> ImageRequest:
    """The request with the pictures of its controls cut to a tile, but for those that are seen as a whole."""
    controls = []
    for control in request.controls:
        changes: dict[str, Any] = {}
        if sees_a_map(model, control):
            changes["image"] = layout.cut(fit(control.image, request.size, control.resize), k)
        if control.mask is not None:
            changes["mask"] = layout.cut(control.mask.resize(request.size), k)
        controls.append(control.model_copy(update=changes))
    return request.model_copy(update={"controls": tuple(controls)})
