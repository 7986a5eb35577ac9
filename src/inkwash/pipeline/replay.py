"""From what a picture says of itself to the same picture."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.images import NAME
from inkwash.pipeline.record.metadata import RECIPE, parse_parameters
from inkwash.pipeline.record.parameters import HASHES, identity
from inkwash.pipeline.request import Drawing, Request
from inkwash.pipeline.tasks.depth import DepthRequest, depth_to_image
from inkwash.pipeline.tasks.image_to_image import ImageRequest, image_to_image
from inkwash.pipeline.tasks.inpaint import InpaintRequest, inpaint
from inkwash.pipeline.tasks.instruct import InstructRequest, instruct
from inkwash.pipeline.tasks.layout import LayoutRequest, layout_to_image
from inkwash.pipeline.tasks.outpaint import OutpaintRequest, outpaint
from inkwash.pipeline.tasks.semantic import SemanticRequest, semantic_to_image
from inkwash.pipeline.tasks.text_to_image import text_to_image
from inkwash.pipeline.tasks.upscale import UpscaleRequest, upscale
from inkwash.prompts.language import LANGUAGES

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model


class Way(NamedTuple):
    """A way to draw: its request, its function, and the pictures that it is given, by role, with their modes."""

    request: type[Drawing]
    draw: Callable[..., list[Image.Image]]
    pictures: Mapping[str, str] = MappingProxyType({})  # the modes are `open_picture`'s


IMAGE = {"image": "RGB"}
WAYS = {
    way.request.task: way
    for way in (
        Way(Request, text_to_image),
        Way(ImageRequest, image_to_image, IMAGE),
        Way(InpaintRequest, inpaint, IMAGE | {"mask": "L"}),
        Way(OutpaintRequest, outpaint, IMAGE),
        Way(DepthRequest, depth_to_image, IMAGE | {"depth": "F"}),
        Way(InstructRequest, instruct, IMAGE),
        Way(UpscaleRequest, upscale, IMAGE),
        Way(LayoutRequest, layout_to_image),
        Way(SemanticRequest, semantic_to_image, {"labels": "P"}),
    )
}


class Recorded(NamedTuple):
    """What a picture says of itself; `picture` is which of the request's it was."""

    request: Drawing
    picture: int
    files: dict[str, dict[str, str]]  # that its prompts name: kind, name, hash
    given: dict[str, dict[str, Any]]  # the pictures that it was made from, by role: see `identity`
    model: dict[str, Any]  # its name and hash, and those of parts in place of its own
    refiner: dict[str, Any] | None = None


def recorded(recipes: Mapping[str, Any]) -> Recorded:
    """The request of a picture, and the models that drew it.

    recipes: as `read_recipes` gives them. Raises ValueError where they do not say enough, as A1111's text does of a
    picture that was made from another one.
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
    return Recorded(request, 0, files, {}, model, refiner.groupdict() if refiner else None)


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


def own(recipe: Mapping[str, Any]) -> Recorded:
    if (task := recipe.get("task")) not in WAYS:
        raise ValueError(f"it was made by {task}, which is not known here")
    try:
        used = [dict(recipe[role]) for role in ("model", "refiner") if role in recipe]
        files, given = (
            {kind: dict(some) for kind, some in recipe.get(key, {}).items()} for key in ("files", "given")
        )
        if missing := WAYS[task].pictures.keys() - given.keys():
            raise ValueError(f"it does not say from which {', '.join(sorted(missing))} it was made")
        request = WAYS[task].request.model_validate(recipe["request"])
        return Recorded(request, int(recipe["picture"]), files, given, *used)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from error


def again(
    model: "Model", of: Recorded, pictures: Mapping[str, Image.Image], on_step: Watch | None = None
) -> Image.Image:
    """The picture once more. pictures: that it was made from, by their roles, in their way's modes.

    All of its batch is drawn, whose arithmetic rounds in its own way. Raises ValueError for a picture that is not
    the recorded one; it may have another name.
    """
    for role, image in pictures.items():
        check_given(of, role, image)
    pictures = {role: image.copy() for role, image in pictures.items()}
    for role, image in pictures.items():
        image.info[NAME] = of.given[role].get("name")
    way = WAYS[of.request.task]
    images = way.draw(model, of.request, *(pictures[role] for role in way.pictures), on_step=on_step)
    return images[of.picture]


def check_given(of: Recorded, role: str, image: Image.Image) -> None:
    """Raises ValueError where a picture is not the one that was given then."""
    wanted, found = of.given[role], identity(image)
    for key in ("size", "mode", "sha256"):
        if wanted.get(key) != found[key]:
            raise ValueError(
                f"this {role} is not the one that it was made from: {key} {found[key]}, and not {wanted.get(key)}"
            )
