"""Events and progress of running jobs, for clients that listen and for those that ask."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

Event = tuple[str, dict[str, Any]]
UNREAD = 1000  # events that wait for a slow listener; after so many it is told of jobs alone
OF_BUILDS = ("losses", "log")  # what the progress of a training or a merge holds besides


def picture_url(id: str, name: object) -> str:
    return f"/api/pictures/{id}/{name}"


class Telling:
    """Listeners, and how far each running job is."""

    def __init__(self) -> None:
        self.listeners: set[asyncio.Queue[Event]] = set()
        self.progress: dict[str, dict[str, Any]] = {}
        self.preview: dict[str, str] = {}
        self.begun: dict[str, tuple[int, float]] = {}  # job -> the first step that was told of, and when
        self.watching = 0.0  # until when somebody wants previews

    @property
    def watched(self) -> bool:
        """True while a client wants previews."""
        return bool(self.listeners) or time.monotonic() < self.watching

    def watch_previews(self) -> None:
        """Have previews made for the next seconds."""
        self.watching = time.monotonic() + 5

    def on_event(self, event: Mapping[str, Any]) -> None:
        """A step or a preview of a running job."""
        id = event["id"]
        if event["event"] == "preview":
            self.preview[id] = event["image"]
            self.tell("preview", {"id": id, "image": event["image"]})
            return
        step, num_steps, now = event["step"], event["num_steps"], time.monotonic()
        first, begun = self.begun.setdefault(id, (step, now))
        left = (now - begun) / (step - first) * (num_steps - step) if step > first else None
        told = {key: event[key] for key in ("picture", "num_pictures", *OF_BUILDS) if key in event}
        if "samples" in event:
            told["samples"] = [picture_url(id, f"{k}.png") for k in range(event["samples"])]
        self.progress[id] = {"step": step, "num_steps": num_steps, "seconds_left": left, **told}
        self.tell("progress", {"id": id, **self.progress[id]})

    def forget(self, id: str) -> None:
        """Drop the events of a job that does not run any more."""
        for kept in (self.progress, self.preview, self.begun):
            kept.pop(id, None)

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        for listener in self.listeners:
            if listener.qsize() < UNREAD or kind == "job":
                listener.put_nowait((kind, data))

    def close(self) -> None:
        """Have all listeners go."""
        for listener in self.listeners:
            listener.put_nowait(("close", {}))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Queue[Event]]:
        """Events from now on."""
        mine: asyncio.Queue[Event] = asyncio.Queue()
        self.listeners.add(mine)
        try:
            yield mine
        finally:
            self.listeners.discard(mine)
