"""A picture and a prompt to a picture. B batch, C channels, H W latent size."""

from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from inkwash.diffusion.schedules import STEP_RULES, tail
from inkwash.pipeline.denoising.denoiser import Watch, encode
from inkwash.pipeline.denoising.prompting import worded
from inkwash.pipeline.images import fitted, nearest_size, to_pixels
from inkwash.pipeline.request import Drawing, number, one_of
from inkwash.pipeline.run import draw, start

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


R = TypeVar("R", bound=Drawing)


class ImageRequest(Drawing):
    """What a picture is changed with. Without a size it keeps its own, rounded to what the model can draw."""

    task: ClassVar[str] = "image_to_image"
    strength: float = Field(0.75, gt=0, le=1, allow_inf_nan=False)  # how much noise; 1 keeps nothing
    step_rule: Annotated[str, one_of(STEP_RULES)] = "a1111"  # how many steps a strength takes, see `tail`

    def told(self, k: int) -> dict[str, object]:
        return super().told(k) | {"Denoising strength": number(self.strength)}


@worded
def image_to_image(
    model: "Model",
    request: ImageRequest,
    image: Image.Image,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Noise a picture and draw it anew by the prompt (SDEdit, Meng et al. 2022).

    strength 1 is `text_to_image`: nothing is left of the picture but its size.
    """
    with torch.inference_mode():
        request = sized(request, nearest_size(image, model.autoencoder.config.factor))
        D, sigmas, x, noise = start(model, request, walked(model, request))
        if request.strength < 1:
            x = x + encode(model, to_pixels(fitted(image, size_of(request))))
        return draw(model, request, (D, sigmas, x, noise), on_step, {"image": image})


def sized(request: R, default: tuple[int, int]) -> R:
    """The request with a size: the wanted one, else (width, height) of the default."""
    width, height = request.width or default[0], request.height or default[1]
    return request.model_copy(update={"width": width, "height": height})


def size_of(request: Drawing) -> tuple[int, int]:
    assert request.width and request.height  # `sized` has set them
    return request.width, request.height


def walked(model: "Model", request: ImageRequest) -> Tensor:
    """The sigmas (n+1,) that the strength takes."""
    make = request.make_sigmas
    return tail(request.steps, request.strength, request.step_rule, lambda n: make(n, model.schedule))
