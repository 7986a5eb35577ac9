"""A picture and what to do to it: InstructPix2Pix. B batch, C channels, H W latent size."""

from typing import TYPE_CHECKING, ClassVar

import torch
from PIL import Image
from pydantic import Field

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.pipeline.denoising.denoiser import Watch, encode
from inkwash.pipeline.denoising.prompting import worded
from inkwash.pipeline.images import fitted, nearest_size, to_pixels
from inkwash.pipeline.request import Drawing, number
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.tasks.image_to_image import size_of, sized
from inkwash.weights.families import variant_of

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class InstructRequest(Drawing):
    """The prompt is an instruction. Without a size the picture keeps its own."""

    task: ClassVar[str] = "instruct"
    image_cfg_scale: float = Field(
        1.5, ge=-100, le=100, allow_inf_nan=False
    )  # how nearly to keep to the picture

    def told(self, k: int) -> dict[str, object]:
        return super().told(k) | {"Image CFG scale": number(self.image_cfg_scale)}


@worded
def instruct(
    model: "Model", request: InstructRequest, image: Image.Image, on_step: Watch | None = None
) -> list[Image.Image]:
    """Do to a picture what the prompt says, with a model that was trained to (Brooks et al. 2023).

    Raises ValueError for another model.
    """
    if variant_of(model.unet.config) != "instruct-pix2pix":
        raise ValueError(f"{model.name} follows no instructions: an InstructPix2Pix model does")
    request = sized(request, nearest_size(image, model.autoencoder.config.factor))
    with torch.inference_mode():
        pixels = to_pixels(fitted(image, size_of(request)))
        # it was trained on unscaled ones; a tiny autoencoder's are scaled as SD1's
        scale = getattr(model.autoencoder.config, "scale_factor", AutoencoderConfig.scale_factor)
        seen = encode(model, pixels) / scale
        given = {"concat": seen.expand(request.batch_size, -1, -1, -1)}
        begun = start(model, request, given=given, image_scale=request.image_cfg_scale)
        return draw(model, request, begun, on_step, {"image": image})
