"""Checks of a request before it becomes a job."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from inkwash.pipeline.problems import describe, own
from inkwash.pipeline.tasks import Task
from inkwash.serve.errors import Refusal
from inkwash.serve.models import Served

M = TypeVar("M", bound=BaseModel)
MAX_SIDE = 8192  # pixels of an enlarged picture


def check_model(task: Task, served: Served) -> None:
    """Check that the model can do the task; raise Refusal otherwise."""
    if served.about and task.name not in served.tasks:
        raise Refusal(422, f"{served.name} can't do {task.name}; it does {', '.join(served.tasks)}", "model")


def check_size(request: Mapping[str, Any], max_pixels: int) -> None:
    """Check that pictures have at most `max_pixels` pixels; raise Refusal otherwise."""
    width, height = request["width"] or 0, request["height"] or 0
    if width * height * request.get("hires", 1) ** 2 > max_pixels:
        raise Refusal(422, f"{width}x{height} is too large; at most {max_pixels} pixels are drawn", "width")


def check_enlarged(size: tuple[int, int]) -> None:
    """Check (width, height) of an enlarged picture; raise ValueError for one that is too large."""
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise ValueError(f"{size[0]}x{size[1]} is not 1 to {MAX_SIDE} pixels a side")


def check_roles(task: Task, given: Sequence[str]) -> None:
    """Check that the pictures are those that the task takes; raise Refusal for a missing or superfluous one."""
    if missing := [role for role in task.images if role not in (*given, *task.optional)]:
        raise Refusal(422, f"images: {missing[0]} is missing", missing[0])
    if extra := [role for role in given if role not in task.images]:
        raise Refusal(422, f"images: {task.name} takes no {extra[0]}", extra[0])


def checked(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields, validated, with random seeds where none are given. Raises Refusal.

    Controls are no field here: see `controls.GivenControl`.
    """
    given = dict(values)
    if given.get("controls"):
        raise Refusal(422, "controls are objects that name a model of this server", "controls")
    for name in ("seed", "variation_seed"):
        if given.get(name) is None or given[name] == -1:
            drawn = name == "seed" or given.get("variation_strength")
            given[name] = secrets.randbelow(2**31) if drawn else 0
    return dumped(validated(task.request, given))


def validated(kind: type[M], values: Any, field: str | None = None) -> M:
    """A model of values. Raises Refusal, which names the field, or the one that all of them belong to."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = own(error.errors())
        wrong = field or (str(problems[0]["loc"][0]) if problems[0]["loc"] else None)
        raise Refusal(422, "; ".join(describe(problem, str) for problem in problems), wrong) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise Refusal(422, str(error), field) from None


def dumped(model: BaseModel) -> dict[str, Any]:
    """The values of a model as JSON has them. Raises Refusal for a text that is none."""
    try:
        values = model.model_dump(mode="json")
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        return values
    except UnicodeEncodeError:
        raise Refusal(422, "a text holds half of a surrogate pair, which is not a character") from None
    except ValueError as error:
        raise Refusal(422, str(error)) from None
