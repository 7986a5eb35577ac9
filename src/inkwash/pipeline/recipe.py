"""What a drawn picture says of itself, and the request that is read back from it."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from inkwash.pipeline.metadata import RECIPE, format_parameters, parse_parameters
from inkwash.pipeline.request import Drawing, Request, number
from inkwash.weights.checkpoint import DTYPES

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class Recorded(NamedTuple):
    """What a picture says of itself; `picture` is which of the request's it was."""

    request: Request
    picture: int
    model: dict[str, Any]  # its name and hash, and those of parts in place of its own
    refiner: dict[str, Any] | None = None


def parameters(model: "Model", request: Drawing, k: int) -> str:
    """A1111's text of picture k."""
    fields = request.told(k) | {
        "Size": f"{request.width or model.default_size}x{request.height or model.default_size}",
        "Model hash": model.hash,
        "Model": model.name,
        "RNG": "CPU",
    }
    if model.refiner:
        fields["Refiner"] = f"{model.refiner.name} [{model.refiner.hash}]"
        if request.refiner_strength is None:
            fields["Refiner switch at"] = number(request.switch_at)
    return format_parameters(request.prompts[k], request.negative_prompt, fields)


def recipe(model: "Model", request: Drawing, k: int) -> str:
    """JSON of all that picture k depends on, but for pictures that were given."""
    about = {"task": request.task, "request": request.model_dump(), "picture": k}
    models = {"model": model} | ({"refiner": model.refiner} if model.refiner else {})
    return json.dumps(about | {role: named(used) for role, used in models.items()}, ensure_ascii=False)


def named(model: "Model") -> Mapping[str, object]:
    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(model.dtype, str(model.dtype))
    used = {"name": model.name, "hash": model.hash, "dtype": dtype}
    return used | ({"parts": model.part_hashes} if model.parts else {})


def recorded(recipes: Mapping[str, Any]) -> Recorded:
    """The request of a picture, and the models that drew it.

    recipes: as `read_recipes` gives them. Raises ValueError where they do not say enough, or where the picture
    was made from another one.
    """
    if RECIPE in recipes:
        return own(recipes[RECIPE])
    prompt, negative_prompt, fields = parse_parameters(recipes.get("parameters", ""))
    if missing := [key for key in ("Steps", "Sampler", "Seed", "Size") if key not in fields]:
        raise ValueError(f"it does not say its {', '.join(missing)}")
    if "Denoising strength" in fields and "Hires upscale" not in fields:
        raise ValueError("it was made from another picture, which its text does not hold")
    if strange := [key for key in fields if key.startswith("Hires ") and key not in TEXT.values()]:
        raise ValueError(f"its second pass is described by {strange[0]}, which is not known here")
    width, _, height = fields["Size"].partition("x")
    read: dict[str, Any] = {name: fields[key] for name, key in TEXT.items() if key in fields}
    read |= {"prompt": prompt, "negative_prompt": negative_prompt, "width": width, "height": height}
    request = Request.model_validate({"cfg_scale": 1} | read)
    refiner = re.fullmatch(r"(?P<name>.*) \[(?P<hash>\w+)\]", fields.get("Refiner", ""))
    model = {"name": fields.get("Model"), "hash": fields.get("Model hash")}
    return Recorded(request, 0, model, refiner.groupdict() if refiner else None)


# the fields of a request that A1111's text has names for, as `told` writes them
TEXT = {
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "seed": "Seed",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation seed strength",
    "seed_resize_from": "Seed resize from",
    "hires_strength": "Denoising strength",
    "hires": "Hires upscale",
    "hires_steps": "Hires steps",
    "hires_upscaler": "Hires upscaler",
    "refiner_switch_at": "Refiner switch at",
}


def own(recipe: Mapping[str, Any]) -> Recorded:
    if recipe.get("task") != Request.task:
        raise ValueError(f"it was made by {recipe.get('task')}, which needs the picture that was given then")
    try:
        used = [dict(recipe[role]) for role in ("model", "refiner") if role in recipe]
        return Recorded(Request.model_validate(recipe["request"]), int(recipe["picture"]), *used)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from error
