"""Prompt to picture. B batch, C channels, H W latent size."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser, precondition
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS, Step
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.metadata import RECIPE, format_parameters, parse_parameters
from inkwash.pipeline.names import resolve
from inkwash.prompts.conditioning import guided

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


def one_of(known: Iterable[str]) -> AfterValidator:
    """A field's value is one of these names."""
    names = sorted(known)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Size = tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]]  # width, height


class Request(BaseModel):
    """What a picture is asked for with; it says no to what cannot be drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: ClassVar[str] = "text_to_image"

    prompt: str | tuple[str, ...]  # one for all pictures, or one for each
    negative_prompt: str = ""
    width: int | None = Field(None, ge=32, le=4096)  # pixels; None is the model's own size
    height: int | None = Field(None, ge=32, le=4096)
    steps: int = Field(20, ge=1, le=500)
    cfg_scale: float = Field(5.0, ge=-100, le=100, allow_inf_nan=False)  # 1 is off
    sampler: Annotated[str, one_of(SAMPLERS)] = "dpmpp_2m"
    schedule: Annotated[str, one_of(SCHEDULES)] = "automatic"
    seed: int = Field(0, ge=0, lt=2**32)  # image k of a batch uses seed + k
    batch_size: int = Field(1, ge=1, le=64)
    # what SDXL is told; by default what is true of the picture
    original_size: Size | None = None
    crop: tuple[int, int] = (0, 0)  # left, top
    target_size: Size | None = None
    aesthetic: float = Field(6.0, ge=0, le=10)  # the refiner
    negative_aesthetic: float = Field(2.5, ge=0, le=10)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [self.prompt] * self.batch_size if isinstance(self.prompt, str) else list(self.prompt)

    @model_validator(mode="before")
    @classmethod
    def known_by_other_names(cls, values: Any) -> Any:
        """Samplers and schedules may have the names that other programs give them."""
        named = {"sampler": "dpmpp_2m", "schedule": "automatic"} | values
        if not all(isinstance(named[key], str) for key in ("sampler", "schedule")):
            return values
        sampler, schedule = resolve(named["sampler"], named["schedule"])
        return values | {"sampler": sampler, "schedule": schedule}

    @model_validator(mode="after")
    def prompt_for_each(self) -> Self:
        if len(self.prompts) != self.batch_size:
            raise ValueError(f"{len(self.prompts)} prompts were given for batch_size {self.batch_size}")
        return self


def text_to_image(
    model: "Model", request: Request, on_step: Callable[[Step], None] | None = None
) -> list[Image.Image]:
    """Draw `request.batch_size` pictures; `on_step` sees each step, and stops the run by raising.

    Image k depends on its own seed alone, so it equals the one drawn alone with seed + k, up to the rounding
    of batched arithmetic. Each image's info holds A1111's `parameters` text.
    """
    with torch.inference_mode():
        return draw(model, request, *start(model, request), on_step)


def start(
    model: "Model", request: Request, sigmas: Tensor | None = None
) -> tuple[Denoiser, Tensor, Tensor, NoiseSource]:
    """The guided denoiser, the sigmas (n+1,), the first x (B, C, H, W) and the noise that samplers draw on.

    sigmas: what to step through; by default the request's schedule over all noise levels.
    """
    taken, given = model.unet.config.in_channels, model.autoencoder.config.latent_channels
    if taken != given:
        raise ValueError(
            f"{model.name} sees {taken} channels and not a latent's {given} alone: it is one for inpainting, depth, "
            "instructions or upscaling, which is opened, inspected and converted, but not drawn with so far"
        )
    f = model.autoencoder.config.factor
    width, height = request.width or model.default_size, request.height or model.default_size
    for name, value in (("width", width), ("height", height)):
        if value % f:
            near = f"{value // f * f} or {(value // f + 1) * f}"
            raise ValueError(f"{name} {value} is not a multiple of {f}; the nearest that are: {near}")
    sigmas = SCHEDULES[request.schedule](request.steps, model.schedule) if sigmas is None else sigmas
    shape = (model.autoencoder.config.latent_channels, height // f, width // f)
    seeds = [request.seed + k for k in range(request.batch_size)]
    noise = NoiseSource(seeds, shape, device=model.device)
    D = guided(
        precondition(model.network(), model.prediction, model.schedule),
        model.text_encoders,
        request.prompts,
        [request.negative_prompt] * request.batch_size,
        sigmas,
        request.cfg_scale,
        embedded_sizes(model.sizes, request, (width, height)),
        model.zero_empty,
    )
    return D, sigmas, noise() * sigmas[0].item(), noise


def embedded_sizes(num: int, request: Request, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """What SDXL and its refiner are told of pictures, and of their negatives: height before width (Podell et al.
    2023, section 2.2). None for a model that is told nothing."""
    if not num:
        return None
    original, target = request.original_size or size, request.target_size or size
    left, top = request.crop
    common = [original[1], original[0], top, left]
    scores = [[target[1], target[0]]] * 2 if num == 6 else [[request.aesthetic], [request.negative_aesthetic]]
    wanted, unwanted = (timestep_embedding(torch.tensor([*common, *end]), 256).flatten() for end in scores)
    return wanted, unwanted


def draw(
    model: "Model",
    request: Request,
    D: Denoiser,
    sigmas: Tensor,
    x: Tensor,
    noise: NoiseSource,
    on_step: Callable[[Step], None] | None = None,
    **fields: object,
) -> list[Image.Image]:
    """The pictures that the sampler makes of x. fields: what their parameters say besides."""
    for step in SAMPLERS[request.sampler](D, x, sigmas, noise=noise):
        x = step.x
        if on_step:
            on_step(step)
    images = to_images(model.autoencoder.decode(x.to(model.dtype)))
    for k, image in enumerate(images):
        image.info["parameters"] = parameters(model, request, k, image.size, **fields)
        image.info[RECIPE] = recipe(model, request, k)
    return images


def to_images(pixels: Tensor) -> list[Image.Image]:
    """RGB images of pixels (B, 3, H, W), clamped to [-1, 1]. Raises FloatingPointError where one is not finite."""
    if not torch.isfinite(pixels).all():
        raise FloatingPointError("the decoded picture holds values that are not finite")
    whole = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in whole]


def parameters(model: "Model", request: Request, k: int, size: tuple[int, int], **more: object) -> str:
    """A1111's text of picture k. more: fields besides, by the names of their values here."""
    fields = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": number(request.cfg_scale),
        "Seed": request.seed + k,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model.hash,
        "Model": model.name,
        "RNG": "CPU",
    } | {name.replace("_", " ").capitalize(): value for name, value in more.items()}
    return format_parameters(request.prompts[k], request.negative_prompt, fields)


def recipe(model: "Model", request: Request, k: int) -> str:
    """JSON of all that picture k depends on, but for pictures that were given."""
    about = {"task": request.task, "request": request.model_dump(), "picture": k}
    return json.dumps(about | {"model": {"name": model.name, "hash": model.hash}}, ensure_ascii=False)


def recorded(recipes: Mapping[str, Any]) -> tuple[Request, int, str, str | None]:
    """The request of a picture, which of its pictures it was, and the model's name and hash.

    recipes: as `read_recipes` gives them. Raises ValueError where they do not say enough, or where the picture
    was made from another one.
    """
    if RECIPE in recipes:
        own = recipes[RECIPE]
        if own.get("task") != Request.task:
            raise ValueError(f"it was made by {own.get('task')}, which needs the picture that was given then")
        try:
            model = own["model"]
            return Request.model_validate(own["request"]), int(own["picture"]), model["name"], model["hash"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"its recipe is damaged: {error}") from error
    prompt, negative_prompt, fields = parse_parameters(recipes.get("parameters", ""))
    if missing := [key for key in ("Steps", "Sampler", "Seed", "Size") if key not in fields]:
        raise ValueError(f"it does not say its {', '.join(missing)}")
    if "Denoising strength" in fields:
        raise ValueError("it was made from another picture or in two passes, which its text does not hold")
    width, _, height = fields["Size"].partition("x")
    request = Request.model_validate(
        {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "steps": fields["Steps"],
            "cfg_scale": fields.get("CFG scale", 1),
            "sampler": fields["Sampler"],
            "schedule": fields.get("Schedule type", "automatic"),
            "seed": fields["Seed"],
        }
    )
    return request, 0, fields.get("Model", ""), fields.get("Model hash")


def number(value: float) -> str:
    """5 rather than 5.0, as A1111 writes it."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
