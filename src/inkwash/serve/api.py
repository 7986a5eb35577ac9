"""inkwash's own dialect, /api: tasks from the table, jobs, events, and what the page needs besides."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

import inkwash
from inkwash.pipeline.tasks import TASKS, Task
from inkwash.serve.answers import dispatcher_of, event, stream, told
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.guard import COOKIE, same
from inkwash.serve.images import decoded
from inkwash.serve.models import Library, Served
from inkwash.serve.queue import ENDED, WAITING

router = APIRouter(prefix="/api", tags=["inkwash"])
STATES = (*WAITING, "running", *ENDED)
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(Strict):
    task: str
    model: str | None = None
    request: dict[str, Any] = {}
    images: dict[str, str] = {}
    priority: int = Field(0, ge=-100, le=100)
    grid: dict[str, list[Any]] = {}


class Change(Strict):
    state: Literal["paused", "queued"] | None = None
    position: int | None = Field(None, ge=0, le=10**6)
    priority: int | None = Field(None, ge=-100, le=100)


class Paused(Strict):
    paused: bool


class Name(Strict):
    name: str


class Token(Strict):
    token: str


class Picture(Strict):
    image: str


class Text(Strict):
    text: str = Field(max_length=100_000)
    model: str | None = None


def schema_of(task: Task) -> dict[str, Any]:
    """The schema of a task's request, without what names files of the server."""
    schema = task.request.model_json_schema()
    schema["properties"].pop("controls")
    return schema


@router.get("/tasks")
async def tasks() -> dict[str, Any]:
    """The table of tasks, each with the schema of its request."""
    return {
        "tasks": [
            {
                "name": task.name,
                "title": task.name.replace("_", " ").capitalize(),
                "summary": task.summary,
                "images": {
                    role: {"mode": mode, "required": role not in task.optional}
                    for role, mode in task.images.items()
                },
                "inputs_of_model": task.sees,
                "schema": schema_of(task),
            }
            for task in TASKS.values()
        ]
    }


@router.get("/server")
async def server(request: Request) -> dict[str, Any]:
    """What this server is, and how much it takes on."""
    dispatcher = dispatcher_of(request)
    settings = dispatcher.settings
    return {
        "version": inkwash.__version__,
        "models_folder": settings.models.name if settings.models else None,
        "device": ", ".join(settings.devices),
        "memory": dispatcher.processes[0].memory,
        "limits": {
            "max_queue": settings.max_queue,
            "max_pixels": settings.max_pixels,
            "max_body": settings.max_body,
        },
        "auth": settings.token is not None,
    }


@router.post("/login", status_code=204)
async def login(request: Request, given: Token) -> Response:
    """Keep the token in a cookie that scripts can't read."""
    token = dispatcher_of(request).settings.token
    if token is not None and not same(given.token, token):
        raise Refusal(401, "the token is wrong", "token")
    response = Response(status_code=204)
    response.set_cookie(COOKIE, given.token, httponly=True, samesite="strict")
    return response


def shown(model: Served, resident: list[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "hash": model.hash or None,
        "family": model.about.get("family"),
        "tasks": model.tasks,
        "loaded": model.source in resident,
        "size": model.about.get("size"),
    }


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that can be drawn with."""
    dispatcher = dispatcher_of(request)
    resident = [source for process in dispatcher.processes for source in process.resident]
    library: Library = dispatcher.library
    return {
        "models": [shown(model, resident) for model in library.models.values()],
        "current": library.current,
    }


@router.post("/models/load")
async def load(request: Request, given: Name) -> dict[str, Any]:
    """Make a model the current one."""
    dispatcher = dispatcher_of(request)
    model = await dispatcher.load(given.name)
    return shown(model, dispatcher.processes[0].resident)


@router.post("/models/refresh")
async def refresh(request: Request) -> dict[str, Any]:
    """Look again for models, and find out about new ones."""
    dispatcher = dispatcher_of(request)
    dispatcher.library.refresh()
    await dispatcher.library.describe_all(dispatcher.helper)
    return await models(request)


@router.get("/extras")
async def extras(request: Request) -> dict[str, Any]:
    """What prompts can name."""
    library = dispatcher_of(request).library
    return {
        "loras": [
            {key: lora[key] for key in ("name", "path", "hash", "triggers")} for lora in library.loras()
        ],
        "embeddings": [{"name": name} for name in library.named("embeddings")],
        "hypernetworks": [{"name": name} for name in library.named("hypernetworks")],
        "controlnets": [],
        "upscalers": ["lanczos", "nearest"],
        "styles": library.styles(),
        "wildcards": library.named("wildcards"),
        "annotators": [],
    }


@router.post("/jobs", status_code=202)
async def new_job(request: Request, new: NewJob) -> dict[str, Any]:
    """Put a job into the queue."""
    dispatcher = dispatcher_of(request)
    images = {role: decoded(text, role) for role, text in new.images.items()}
    job = dispatcher.submit(new.task, new.request, images, new.model, new.grid, "api", new.priority)
    return dispatcher.view(job)


@router.get("/jobs")
async def history(
    request: Request,
    state: str = "",
    search: Annotated[str, Query(max_length=1000)] = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> dict[str, Any]:
    """Jobs, newest first. state: one or several, with commas. before: the cursor that the page before gave."""
    dispatcher = dispatcher_of(request)
    states = [name for name in state.split(",") if name]
    if wrong := [name for name in states if name not in STATES]:
        raise Refusal(422, f"state {wrong[0][:50]!r} is not one of {', '.join(STATES)}", "state")
    found = dispatcher.queue.history(states, search, limit, before)
    positions = {row[0]: k for k, row in enumerate(dispatcher.queue.order())}
    return {
        "jobs": [dispatcher.view(job, positions) for job in found],
        "next": found[-1].number if len(found) == limit else None,
    }


@router.get("/jobs/{id}")
async def job(request: Request, id: Id) -> dict[str, Any]:
    """One job."""
    dispatcher = dispatcher_of(request)
    return dispatcher.view(dispatcher.find(id))


@router.patch("/jobs/{id}")
async def change(request: Request, id: Id, wanted: Change) -> dict[str, Any]:
    """Pause a waiting job or let it wait on, move it, or set its priority."""
    dispatcher, values = dispatcher_of(request), wanted.model_dump(exclude_none=True)
    if len(values) != 1:
        raise Refusal(422, "give one of state, position and priority")
    dispatcher.find(id)
    try:
        if wanted.position is not None:
            changed = dispatcher.queue.move(id, wanted.position)
        else:
            changed = dispatcher.queue.change(id, **values)
    except KeyError:
        raise Refusal(409, "only a job that waits can be changed") from None
    dispatcher.publish(changed)
    for wake in dispatcher.wake:
        wake.set()
    return dispatcher.view(changed)


@router.post("/jobs/{id}/cancel")
async def cancel(request: Request, id: Id) -> dict[str, Any]:
    """End a job; one that runs ends after its step."""
    dispatcher = dispatcher_of(request)
    return dispatcher.view(dispatcher.cancel(id))


@router.post("/jobs/{id}/retry", status_code=202)
async def retry(request: Request, id: Id) -> dict[str, Any]:
    """The same job once more."""
    dispatcher = dispatcher_of(request)
    return dispatcher.view(dispatcher.retry(id))


@router.delete("/jobs/{id}", status_code=204)
async def delete(request: Request, id: Id) -> None:
    """Remove a job and its pictures."""
    dispatcher_of(request).delete(id)


@router.get("/queue")
async def queue(request: Request) -> dict[str, Any]:
    """What waits, in its order."""
    dispatcher = dispatcher_of(request)
    waiting = dispatcher.queue.waiting()
    positions = {job.id: k for k, job in enumerate(waiting)}
    return {
        "paused": dispatcher.paused,
        "length": len(waiting),
        "jobs": [dispatcher.view(job, positions) for job in waiting],
    }


@router.post("/queue")
async def pause(request: Request, wanted: Paused) -> dict[str, Any]:
    """Stop taking jobs from the queue, or go on."""
    dispatcher = dispatcher_of(request)
    dispatcher.pause(wanted.paused)
    return {"paused": dispatcher.paused, "length": dispatcher.queue.length()}


@router.get("/events")
async def events(request: Request) -> StreamingResponse:
    """What happens to all jobs."""
    return stream(written(request, None))


@router.get("/jobs/{id}/events")
async def events_of(request: Request, id: Id) -> StreamingResponse:
    """What happens to one job, until it ends."""
    dispatcher_of(request).find(id)
    return stream(written(request, id))


async def written(request: Request, id: str | None) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for kind, data in told(dispatcher_of(request), id):
        yield event(kind, data) if kind else ": still here\n\n"


@router.get("/pictures/{id}/{file}")
async def picture(
    request: Request, id: Id, file: Annotated[str, Field(pattern=r"^\d{1,4}\.(png|webp)$")]
) -> FileResponse:
    """A picture with its recipe inside, or its thumbnail."""
    path: Path = dispatcher_of(request).folder(id) / file
    if not path.is_file():
        raise unknown("picture", f"{id}/{file}")
    return FileResponse(path, headers={"Cache-Control": "private, max-age=31536000, immutable"})


@router.post("/recipe")
async def recipe(request: Request, given: Picture) -> dict[str, Any]:
    """The task and request that a picture was made by, whatever tool wrote its metadata."""
    dispatcher = dispatcher_of(request)
    async with dispatcher.file_of(decoded(given.image, "image")) as path:
        return await dispatcher.help("recipe", path=path)


@router.post("/tokens")
async def tokens(request: Request, given: Text) -> dict[str, Any]:
    """How many tokens a prompt has for a model."""
    dispatcher = dispatcher_of(request)
    source = dispatcher.library.resolve(given.model).source
    return await dispatcher.help("tokens", text=given.text, source=source)
