"""What a drawn picture says of itself, and the request that is read back from it."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inkwash.pipeline.metadata import RECIPE, format_parameters, parse_parameters
from inkwash.pipeline.request import Request

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


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
    used = {"name": model.name, "hash": model.hash} | ({"parts": model.part_hashes} if model.parts else {})
    return json.dumps(about | {"model": used}, ensure_ascii=False)


def recorded(recipes: Mapping[str, Any]) -> tuple[Request, int, dict[str, Any]]:
    """The request of a picture, which of its pictures it was, and the model's name and hash, with its parts' ones.

    recipes: as `read_recipes` gives them. Raises ValueError where they do not say enough, or where the picture
    was made from another one.
    """
    if RECIPE in recipes:
        own = recipes[RECIPE]
        if own.get("task") != Request.task:
            raise ValueError(f"it was made by {own.get('task')}, which needs the picture that was given then")
        try:
            return Request.model_validate(own["request"]), int(own["picture"]), dict(own["model"])
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
    return request, 0, {"name": fields.get("Model"), "hash": fields.get("Model hash")}


def number(value: float) -> str:
    """5 rather than 5.0, as A1111 writes it."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
