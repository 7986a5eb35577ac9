"""One model's picture enlarged by the next: Imagen's cascade (Saharia et al. 2022, section 2.2; Ho et al. 2022)."""

from collections.abc import Sequence

from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.model import Model
from inkwash.pipeline.task_requests import TextToImageRequest, UpscaleRequest
from inkwash.pipeline.tasks import TASKS

OWN = ("width", "height", "seed", "batch_size", "prompt", "negative_prompt")  # of each stage


def cascade(
    models: Sequence[Model], request: TextToImageRequest, on_step: Watch | None = None
) -> list[list[Image.Image]]:
    """The pictures of every stage, the largest last. models: one that draws, and upscalers in their order.

    All stages have the request's prompts, seeds and settings; each picture's recipe is that of its own stage. Raises
    ValueError where a later model does not enlarge.
    """
    first, *others = models
    stages = [TASKS["text_to_image"].draw(first, request, {}, on_step)]
    shared = {
        name: value for name, value in request.model_dump(exclude_unset=True).items() if name not in OWN
    }
    shared = {name: value for name, value in shared.items() if name in UpscaleRequest.model_fields}
    for model in others:
        larger = []
        for k, image in enumerate(stages[-1]):
            own = {"prompt": request.prompts[k], "negative_prompt": request.negative_prompts[k]}
            one = UpscaleRequest.model_validate(shared | own | {"seed": request.seeds[k]})
            larger += TASKS["upscale"].draw(model, one, {"image": image}, on_step)
        stages.append(larger)
    return stages
