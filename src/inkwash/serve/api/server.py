"""Description of the server: tasks, models, and the names for prompts."""

from typing import Any

from fastapi import APIRouter, Request, Response

import inkwash
from inkwash.pipeline.tasks import TASKS, Task
from inkwash.serve import controls as steering
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.api.bodies import Name, Text, Token
from inkwash.serve.enlarging import UPSCALERS
from inkwash.serve.errors import Refusal
from inkwash.serve.guard import COOKIE, same
from inkwash.serve.models import Library, Served

router = APIRouter()


def schema_of(task: Task) -> dict[str, Any]:
    """The schema of a task's request over HTTP, where controls are named and not files."""
    schema = task.request.model_json_schema()
    fields = schema["properties"]
    fields["controls"] = steering.field_schema(fields["controls"])
    schema.get("$defs", {}).pop("Control", None)
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
    """The server's version, settings and limits."""
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
    """The names that prompts, controls and trainings can use."""
    library, data = dispatcher_of(request).library, dispatcher_of(request).settings.data
    return {
        "data": sorted(path.name for path in data.iterdir() if path.name[0] != ".") if data else [],
        "loras": [
            {key: lora[key] for key in ("name", "path", "hash", "triggers")} for lora in library.loras()
        ],
        "embeddings": [{"name": name} for name in library.named("embeddings")],
        "hypernetworks": [{"name": name} for name in library.named("hypernetworks")],
        "controlnets": [{"name": name} for name in library.controls()],
        "upscalers": [*UPSCALERS, *library.upscalers()],
        "styles": library.styles(),
        "wildcards": library.named("wildcards"),
        "annotators": list(steering.HINTS),
    }


@router.get("/controls")
async def controls(request: Request, model: str | None = None) -> dict[str, Any]:
    """The networks that steer, and for each why it does not fit a model, null where it does; by default the current one."""
    dispatcher = dispatcher_of(request)
    served = dispatcher.library.resolve(model)
    found = await dispatcher.library.misfits(dispatcher.helper, served)
    return {
        "model": served.name,
        "controls": [{"name": name, "misfit": why} for name, why in found.items()],
    }


@router.post("/tokens")
async def tokens(request: Request, given: Text) -> dict[str, Any]:
    """Number of tokens that a prompt has for a model."""
    dispatcher = dispatcher_of(request)
    source = dispatcher.library.resolve(given.model).source
    return await dispatcher.helper.ask("tokens", text=given.text, source=source)
