"""Models that are made: /api/merge and /api/train, where the server has folders for them."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.api.bodies import Strict
from inkwash.serve.builds import TRAININGS, MergeConfig, check_merge, check_training
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.settings import Settings

AnyTraining = Annotated[reduce(or_, TRAININGS.values()), Field(discriminator="method")]  # type: ignore[arg-type]


class Merge(Strict):
    """A merge to be queued."""

    config: MergeConfig


class Training(Strict):
    """A training to be queued."""

    config: AnyTraining  # pyright: ignore[reportInvalidTypeForm]  a union that is made of a table


def routes(settings: Settings) -> APIRouter:
    """The routes of a server: none that it has no folders for."""
    router = APIRouter()
    if settings.models:
        router.post("/merge", status_code=202)(merge)
    if settings.models and settings.data:
        router.post("/train", status_code=202)(train)
    return router


async def merge(request: Request, body: Merge) -> dict[str, Any]:
    """Put a merge into the queue; the result is a model of the folder of models."""
    dispatcher = dispatcher_of(request)
    wanted = check_merge(body.config, dispatcher.settings, dispatcher.library)
    return put(dispatcher, "merge", body.config.models[0], wanted)


async def train(request: Request, body: Training) -> dict[str, Any]:
    """Put a training into the queue; a job that is cancelled keeps its state, and a retry goes on from it."""
    dispatcher = dispatcher_of(request)
    wanted = check_training(body.config, dispatcher.settings, dispatcher.library)
    return put(dispatcher, "train", wanted["config"].get("model"), wanted)


def put(dispatcher: Dispatcher, kind: str, model: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
    """A job of a name that no other one is about to write."""
    running = [dispatcher.queue.get(id) for id in dispatcher.running]
    others = [job for job in [*running, *dispatcher.queue.waiting()] if job.task == kind]
    if wanted["name"] in [job.request["name"] for job in others]:
        raise Refusal(409, f"a job that makes {wanted['name']} is under way", "name")
    name = dispatcher.library.resolve(model).name
    return dispatcher.view(dispatcher.put(kind, name, wanted, {}, {}, "api", 0))
