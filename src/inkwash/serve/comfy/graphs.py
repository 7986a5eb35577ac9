"""ComfyUI's queue of graphs and its history."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.comfy.graph import Meant, Reader
from inkwash.serve.comfy.links import NodeError
from inkwash.serve.comfy.pictures import Given, images_of
from inkwash.serve.comfy.records import about, entry, find, keep, left
from inkwash.serve.controls import GivenControl
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.pixels import as_png
from inkwash.serve.queue import Job

router = APIRouter()


class Prompt(BaseModel):
    """A graph to be queued."""

    model_config = ConfigDict(extra="ignore")
    prompt: dict[str, Any]
    client_id: str | None = None
    prompt_id: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")] | None = None  # of the client's choice
    front: bool = False


class Which(BaseModel):
    """Jobs to be removed: all of them, or some by id."""

    model_config = ConfigDict(extra="ignore")
    clear: bool = False
    delete: list[str] = []


@router.post("/prompt")
async def prompt(request: Request, body: Prompt) -> Any:
    """Queue a graph."""
    dispatcher = dispatcher_of(request)
    if body.prompt_id and find(dispatcher, body.prompt_id):
        raise Refusal(409, f"prompt_id {body.prompt_id} was given before", "prompt_id")
    try:
        meant = await asyncio.to_thread(read, dispatcher, body.prompt)
    except NodeError as error:
        return JSONResponse(wrong(error), 400)
    drawing = meant.drawing
    job = dispatcher.submit(
        drawing.task,
        drawing.values,
        {role: as_png(image) for role, image in drawing.images.items()},
        drawing.model,
        dialect="comfy",
        priority=1 if body.front else 0,
        controls=[GivenControl(hint.name, hint.values, as_png(hint.image)) for hint in drawing.controls],
    )
    kept = {
        "graph": body.prompt,
        "outputs": meant.outputs,
        "makers": meant.makers,
        "sampler": drawing.sampler,
        "client": body.client_id,
    }
    id = body.prompt_id or job.id
    keep(dispatcher, job.id, id, kept)
    return {"prompt_id": id, "number": job.number, "node_errors": {}}


def read(dispatcher: Dispatcher, graph: dict[str, Any]) -> Meant:
    return Reader(graph, Given(dispatcher)).meant()


def wrong(error: NodeError) -> dict[str, Any]:
    """ComfyUI's answer for a graph that it does not run."""
    about = {
        "type": "invalid_prompt",
        "message": error.message,
        "details": error.field or "",
        "extra_info": {},
    }
    nodes = {}
    if error.node:
        about["details"] = f"Node ID '#{error.node}'"
        details = {
            "type": "value_error",
            "message": error.message,
            "details": error.field or "",
            "extra_info": {},
        }
        nodes = {error.node: {"errors": [details], "dependent_outputs": [], "class_type": error.kind}}
    return {"error": about, "node_errors": nodes}


@router.get("/prompt")
async def remaining(request: Request) -> dict[str, Any]:
    """The number of jobs that are left."""
    return {"exec_info": {"queue_remaining": left(dispatcher_of(request))}}


@router.get("/queue")
async def queue(request: Request) -> dict[str, Any]:
    """The running and the waiting jobs, in this dialect."""
    dispatcher = dispatcher_of(request)
    running = [dispatcher.queue.get(id) for id in dispatcher.running]
    return {
        "queue_running": [entry(dispatcher, job) for job in running if job.dialect == "comfy"],
        "queue_pending": [
            entry(dispatcher, job) for job in dispatcher.queue.waiting() if job.dialect == "comfy"
        ],
    }


@router.post("/queue")
async def change_queue(request: Request, which: Which) -> Response:
    """Take waiting graphs out of the queue."""
    dispatcher = dispatcher_of(request)
    for job in dispatcher.queue.waiting():
        if job.dialect == "comfy" and (which.clear or about(dispatcher, job.id)["id"] in which.delete):
            dispatcher.cancel(job.id)
    return Response()


@router.post("/interrupt")
async def interrupt(request: Request) -> Response:
    """End the graphs that run."""
    dispatcher = dispatcher_of(request)
    for id in list(dispatcher.running):
        if dispatcher.queue.get(id).dialect == "comfy":
            dispatcher.cancel(id)
    return Response()


def past(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """A job as the history has it."""
    good, id = job.state == "done", about(dispatcher, job.id)["id"]
    last = (
        "execution_success"
        if good
        else "execution_interrupted"
        if job.state == "cancelled"
        else "execution_error"
    )
    messages = [
        ["execution_start", {"prompt_id": id}],
        [last, {"prompt_id": id, "exception_message": job.error}],
    ]
    return {
        "prompt": entry(dispatcher, job),
        "outputs": images_of(dispatcher, job),
        "status": {"status_str": "success" if good else "error", "completed": good, "messages": messages},
        "meta": {},
    }


@router.get("/history")
async def history(request: Request, max_items: int = 200) -> dict[str, Any]:
    """Graphs that have ended, the last ones."""
    dispatcher = dispatcher_of(request)
    ended = dispatcher.queue.history(("done", "failed", "cancelled"), limit=max(1, min(max_items, 1000)))
    return {
        about(dispatcher, job.id)["id"]: past(dispatcher, job)
        for job in reversed(ended)
        if job.dialect == "comfy"
    }


@router.get("/history/{id}")
async def history_of(request: Request, id: str) -> dict[str, Any]:
    """One graph, once it has ended."""
    dispatcher = dispatcher_of(request)
    job = find(dispatcher, id)
    return {id: past(dispatcher, job)} if job and job.finished else {}


@router.post("/history")
async def change_history(request: Request, which: Which) -> Response:
    """Forget graphs that have ended, and their pictures."""
    dispatcher = dispatcher_of(request)
    for job in dispatcher.queue.history(("done", "failed", "cancelled"), limit=10_000):
        if job.dialect == "comfy" and (which.clear or about(dispatcher, job.id)["id"] in which.delete):
            dispatcher.delete(job.id)
    return Response()
