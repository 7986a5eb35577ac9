"""The dialects' common part: the jobs of a request that waits for its pictures, and event streams."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.queue import Job

KEEP_OPEN = 15.0  # seconds between comments in a stream


def dispatcher_of(request: Request) -> Dispatcher:
    return request.app.state.dispatcher


async def drawn(request: Request, jobs: Sequence[Job]) -> list[Job]:
    """The jobs once they have ended; a client that goes away cancels them. Raises Refusal for one that has failed."""
    dispatcher = dispatcher_of(request)
    waiting = asyncio.ensure_future(asyncio.gather(*(dispatcher.wait(job.id) for job in jobs)))
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.25)
            if not waiting.done() and await request.is_disconnected():
                raise Refusal(499, "the client has gone")
    except (Refusal, asyncio.CancelledError):
        waiting.cancel()
        for job in jobs:
            dispatcher.cancel(job.id)
        raise
    ended = waiting.result()
    for job in ended:
        if job.state == "failed":
            raise dispatcher.refusal(job)
    return ended


def event(kind: str, data: Any) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """An answer that goes on, through proxies too."""
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def told(dispatcher: Dispatcher, id: str | None = None) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Events from now on, of one job or of all; a comment when there was none for long. It ends with the job."""
    async with dispatcher.telling.listening() as listener:
        if id:
            job = dispatcher.find(id)
            yield "job", dispatcher.view(job)
            if job.finished:
                return
        while not dispatcher.closing:
            try:
                kind, data = await asyncio.wait_for(listener.get(), KEEP_OPEN)
            except TimeoutError:
                yield "", {}
                continue
            if kind == "close":
                return
            if id is None or data["id"] == id:
                yield kind, data
                if id and kind == "job" and data["finished"]:
                    return
