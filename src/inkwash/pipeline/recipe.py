"""What a drawn picture says of itself, and the request that is read back from it."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from inkwash.pipeline.metadata import RECIPE, format_parameters, parse_parameters
from inkwash.pipeline.request import Drawing, Request, number
from inkwash.pipeline.wording import files_of
from inkwash.prompts.language import LANGUAGES
from inkwash.weights.checkpoint import DTYPES

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class Recorded(NamedTuple):
    """What a picture says of itself; `picture` is which of the request's it was."""

    request: Request
    picture: int
    files: dict[str, dict[str, str]]  # that its prompts name: kind, name, hash
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
    for kind, files in files_of(model, request, k).items():
        fields[HASHES[kind]] = ", ".join(f"{name}: {digest}" for name, digest in files.items())
    return format_parameters(request.prompts[k], request.negative_prompts[k], fields)


def recipe(model: "Model", request: Drawing, k: int) -> str:
    """JSON of all that picture k depends on, but for pictures that were given."""
    about = {"task": request.task, "request": request.model_dump(), "picture": k}
    models = {"model": model} | ({"refiner": model.refiner} if model.refiner else {})
    about |= {role: named(used) for role, used in models.items()} | {"files": files_of(model, request, k)}
    return json.dumps(about, ensure_ascii=False)


def named(model: "Model") -> Mapping[str, object]:
    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(model.dtype, str(model.dtype))
    used = {"name": model.name, "hash": model.hash, "dtype": dtype} | ({"int8": True} if model.int8 else {})
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
    read["prompt_language"] = language_of(fields)
    request = Request.model_validate({"cfg_scale": 1} | read)
    refiner = re.fullmatch(r"(?P<name>.*) \[(?P<hash>\w+)\]", fields.get("Refiner", ""))
    model = {"name": fields.get("Model"), "hash": fields.get("Model hash")}
    files = {kind: hashes(fields[key]) for kind, key in HASHES.items() if key in fields}
    return Recorded(request, 0, files, model, refiner.groupdict() if refiner else None)


def hashes(text: str) -> dict[str, str]:
    """Names and hashes of files, as A1111 writes those of one kind."""
    pairs = (entry.rpartition(":") for entry in text.split(",") if ":" in entry)
    return {name.strip(): digest.strip() for name, _, digest in pairs}


def language_of(fields: Mapping[str, str]) -> str:
    """The language that A1111's fields mean."""
    own = {language.emphasis: name for name, language in LANGUAGES.items() if language.emphasis}
    return fields.get("Prompt language", own.get(fields.get("Emphasis", ""), "a1111"))


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
    "clip_skip": "Clip skip",
    "token_merging": "Token merging ratio",
}
HASHES = {"loras": "Lora hashes", "embeddings": "TI hashes"}


def own(recipe: Mapping[str, Any]) -> Recorded:
    if recipe.get("task") != Request.task:
        raise ValueError(f"it was made by {recipe.get('task')}, which needs the picture that was given then")
    try:
        used = [dict(recipe[role]) for role in ("model", "refiner") if role in recipe]
        files = {kind: dict(some) for kind, some in recipe.get("files", {}).items()}
        return Recorded(Request.model_validate(recipe["request"]), int(recipe["picture"]), files, *used)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from error
