"""Replay: draw a picture again from the recipe in its metadata."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from pydantic import ValidationError

from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.images import NAME
from inkwash.pipeline.model import Model
from inkwash.pipeline.problems import describe
from inkwash.pipeline.record import others
from inkwash.pipeline.record.a1111 import TEXT, hashes, parse_parameters, request_values
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.record.parameters import HASHES, identity
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import TASKS

R = TypeVar("R", bound=Request)


class Recorded(NamedTuple):
    """A picture's record of how it was drawn; `picture` is its place in the request's batch."""

    request: Request
    picture: int
    files: dict[str, dict[str, str]]  # that its prompts name: kind, name, hash
    given: dict[str, dict[str, Any]]  # the pictures that it was made from, by role: see `identity`
    model: dict[str, Any]  # its name and hash, and those of parts in place of its own
    refiner: dict[str, Any] | None = None
    not_applied: tuple[str, ...] = ()  # what the recipe says and inkwash does not do, one line each
    prior: dict[str, Any] | None = None  # its name, empty of one that the model brings, and its hash


def recorded(recipes: Mapping[str, Any]) -> Recorded:
    """The request of a picture, and the models that drew it.

    recipes: as `read_recipes` gives them. Raises ValueError where they do not say enough, as A1111's text does about a
    picture that was made from another one.
    """
    if RECIPE in recipes:
        return own(recipes[RECIPE])
    if "parameters" in recipes:
        prompt, negative_prompt, fields = parse_parameters(recipes["parameters"])
    else:
        program = next((name for name in recipes if name in others.TRANSLATORS), next(iter(recipes), ""))
        prompt, negative_prompt, fields = others.translate(program, recipes[program])
    values, not_applied = request_values(prompt, negative_prompt, fields)
    request = validated(TextToImageRequest, values)
    refiner = re.fullmatch(r"(?P<name>.*) \[(?P<hash>\w+)\]", fields.get("Refiner", ""))
    model = {"name": fields.get("Model"), "hash": fields.get("Model hash")}
    files = {kind: hashes(fields[key]) for kind, key in HASHES.items() if key in fields}
    return Recorded(request, 0, files, {}, model, refiner.groupdict() if refiner else None, not_applied)


def validated(kind: type[R], values: Any) -> R:
    """A checked request. Raises ValueError with one line for all problems, by A1111's names."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        names = {"width": "Size", "height": "Size"} | TEXT
        lines = [describe(problem, lambda name: names.get(name, name)) for problem in error.errors()]
        raise ValueError("; ".join(dict.fromkeys(lines))) from None


def own(recipe: Mapping[str, Any]) -> Recorded:
    """The request of inkwash's own recipe."""
    if (task := recipe.get("task")) not in TASKS:
        raise ValueError(f"it was made by the task {task}, which this version of inkwash does not have")
    try:
        used = [dict(recipe[role]) for role in ("model", "refiner") if role in recipe]
        files, given = (
            {kind: dict(some) for kind, some in recipe.get(key, {}).items()} for key in ("files", "given")
        )
        if missing := TASKS[task].images.keys() - {*TASKS[task].optional} - given.keys():
            raise ValueError(f"it does not say from which {', '.join(sorted(missing))} it was made")
        request = validated(TASKS[task].request, recipe["request"])
        if not 0 <= (picture := int(recipe["picture"])) < request.batch_size:
            raise ValueError(f"it says that it is picture {picture} of {request.batch_size}")
        refiner = used[1] if len(used) > 1 else None
        prior = dict(recipe["prior"]) if "prior" in recipe else None
        return Recorded(request, picture, files, given, used[0], refiner, prior=prior)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from error


def again(
    model: Model, of: Recorded, pictures: Mapping[str, Image.Image], on_step: Watch | None = None
) -> Image.Image:
    """The picture once more. pictures: that it was made from, by their roles, in their task's modes.

    All of its batch is drawn, whose arithmetic rounds in its own way. Raises ValueError for a picture that is not
    the recorded one; it may have another name.
    """
    for role, image in pictures.items():
        check_given(of, role, image)
    pictures = {role: image.copy() for role, image in pictures.items()}
    for role, image in pictures.items():
        image.info[NAME] = of.given[role].get("name")
    controls = tuple(
        control.model_copy(
            update={
                "image": pictures.get(f"control-{i}", control.image),
                "mask": pictures.get(f"control-{i}-mask", control.mask),
            }
        )
        for i, control in enumerate(of.request.controls)
    )
    request = of.request.model_copy(update={"controls": controls})
    return TASKS[request.task].draw(model, request, pictures, on_step)[of.picture]


def check_given(of: Recorded, role: str, image: Image.Image) -> None:
    """Check that a picture is the recorded one; raise ValueError otherwise."""
    wanted, found = of.given[role], identity(image)
    for key in ("size", "mode", "sha256"):
        if wanted.get(key) != found[key]:
            raise ValueError(
                f"this {role} is not the one that it was made from: {key} {found[key]}, and not {wanted.get(key)}"
            )
