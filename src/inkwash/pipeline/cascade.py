"""One model's picture enlarged by the next: Imagen's cascade (Saharia et al. 2022, section 2.2; Ho et al. 2022)."""

from collections.abc import Sequence

from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.images import in_mode
from inkwash.pipeline.model import Model
from inkwash.pipeline.task_requests import TextToImageRequest, UpscaleRequest
from inkwash.pipeline.tasks import TASKS

# of each stage, or of the first alone
OWN = ("width", "height", "seed", "batch_size", "prompt", "negative_prompt", "controls")


def cascade(
    models: Sequence[Model], request: TextToImageRequest, on_step: Watch | None = None
) -> list[list[Image.Image]]:
    """The pictures of every stage, the largest last. models: one that draws, and upscalers in their order.

    All stages have the request's prompts, seeds and settings, and the upscalers its noise_level; each picture's recipe is
    that of its own stage. Raises ValueError where a later model does not enlarge.
    """
    first, *others = models
    stages = [TASKS["text_to_image"].draw(first, first_stage(request), {}, on_step)]
    for model in others:
        stages.append([enlarged(model, request, k, image, on_step) for k, image in enumerate(stages[-1])])
    return stages


def first_stage(request: TextToImageRequest) -> TextToImageRequest:
    """The request without the noise_level, which is that of upscalers."""
    return request.model_copy(update={"noise_level": None})


def enlarged(
    model: Model, request: TextToImageRequest, k: int, image: Image.Image, on_step: Watch | None = None
) -> Image.Image:
    """Picture k of a cascade's stage, made larger by the next model."""
    given = request.model_dump(exclude_unset=True)
    shared = {name: value for name, value in given.items() if name in UpscaleRequest.model_fields}
    own = {"prompt": request.prompts[k], "negative_prompt": request.negative_prompts[k]}
    values = {name: value for name, value in shared.items() if name not in OWN} | own
    one = UpscaleRequest.model_validate(values | {"seed": request.seeds[k]})
    task = TASKS["upscale"]
    return task.draw(model, one, {"image": in_mode(image, task.images["image"])}, on_step)[0]
