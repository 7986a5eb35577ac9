"""Jobs and the queue, and their events."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from inkwash.serve import controls as steering
from inkwash.serve.answers import dispatcher_of, event, stream, told
from inkwash.serve.api.bodies import Change, NewJob, Paused
from inkwash.serve.errors import Refusal
from inkwash.serve.queue import ENDED, WAITING

router = APIRouter()


STATES = (*WAITING, "running", *ENDED)


Id = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


@router.post("/jobs", status_code=202)
async def new_job(request: Request, new: NewJob) -> dict[str, Any]:
    """Put a job into the queue."""
    dispatcher = dispatcher_of(request)
    images = {role: dispatcher.uploads.picture(text, role) for role, text in new.images.items()}
    values = dict(new.request)
    controls = steering.read(values.pop("controls", None) or [], dispatcher.uploads)
    job = dispatcher.submit(
        new.task, values, images, new.model, new.grid, "api", new.priority, controls=controls
    )
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
    """Put the same job into the queue once more."""
    dispatcher = dispatcher_of(request)
    return dispatcher.view(dispatcher.retry(id))


@router.delete("/jobs/{id}", status_code=204)
async def delete(request: Request, id: Id) -> None:
    """Remove a job and its pictures."""
    dispatcher_of(request).delete(id)


@router.get("/queue")
async def queue(request: Request) -> dict[str, Any]:
    """The waiting jobs, in their order."""
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
    """Events of all jobs."""
    return stream(written(request, None))


@router.get("/jobs/{id}/events")
async def events_of(request: Request, id: Id) -> StreamingResponse:
    """Events of one job, until it ends."""
    dispatcher_of(request).find(id)
    return stream(written(request, id))


async def written(request: Request, id: str | None) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for kind, data in told(dispatcher_of(request), id):
        yield event(kind, data) if kind else ": still here\n\n"
