"""Drawing processes as actors of a Ray cluster, with the calls and the events of those of this machine."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from inkwash.cluster import connect, resources
from inkwash.serve.errors import WorkerDied
from inkwash.serve.process import Process

IDLE = 60.0  # seconds after which a worker that is not needed goes, and its machine may


class Actor:
    """A `Worker` in a process of the cluster."""

    def __init__(self, settings: Mapping[str, Any]):
        from inkwash.process import keep_memory
        from inkwash.serve.worker import Worker

        keep_memory()
        self.told: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self.worker, self.turn = Worker(settings, self.told.put), Lock()

    def ready(self) -> int:
        """The process, once it is there."""
        return os.getpid()

    def tell(self, message: dict[str, Any]) -> None:
        """Take a message that has no answer."""
        self.worker.tell(message)

    def answer(self, message: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The events of a call, and its answer."""
        with self.turn:
            Thread(target=self.worker.answer, args=(message,), daemon=True).start()
            while "event" in (told := self.told.get()):
                yield told
        yield told


class ClusterProcess(Process):
    """One actor, which is there while it is needed. device: "cuda" has a GPU of its own."""

    def __init__(self, settings: Mapping[str, Any], on_event: Callable[[dict[str, Any]], None], device: str):
        super().__init__(settings, on_event)
        self.ray, self.device = connect(), device
        self.actor: Any = None
        self.number: int | None = None
        self.calls = 0
        self.used = 0.0

    @property
    def pid(self) -> int | None:
        return self.number

    @property
    def started(self) -> bool:
        return self.actor is not None

    async def ready(self, wanted: Callable[[], bool]) -> bool:
        if not self.started and not wanted():
            return False
        try:
            await self.start()
        except WorkerDied:
            return False
        return True

    async def start(self) -> None:
        """Have the actor. It may wait for a machine of the cluster. Raises WorkerDied."""
        if self.actor is None:
            kind = self.ray.remote(Actor).options(max_concurrency=4, **resources(self.device))
            self.actor, self.used = kind.remote(dict(self.settings)), time.monotonic()
        with self.dying():
            self.number = await self.actor.ready.remote()

    @contextmanager
    def dying(self) -> Iterator[None]:
        """Turn the end of the actor into WorkerDied, after which there is none."""
        try:
            yield
        except self.ray.exceptions.RayActorError as error:
            self.actor, self.number, self.resident = None, None, []
            raise WorkerDied("the worker has ended") from error

    def send(self, message: Mapping[str, Any]) -> None:
        if self.actor is not None:
            self.actor.tell.remote(dict(message))

    async def call(self, call: str, id: str | None = None, **arguments: Any) -> dict[str, Any]:
        await self.start()
        message = {"call": call, "id": id or secrets.token_hex(8), **arguments}
        self.calls += 1
        try:
            with self.dying():
                async for reference in self.actor.answer.options(num_returns="streaming").remote(message):
                    told = await reference
                    if "event" in told:
                        self.on_event(told)
                    else:
                        self.resident, self.memory = told["resident"], told["memory"]
                        return told
        finally:
            self.calls -= 1
            self.used = time.monotonic()
        raise WorkerDied("the worker gave no answer")

    async def rest(self) -> None:
        if self.started and not self.calls and time.monotonic() - self.used > IDLE:
            await self.stop()

    async def stop(self) -> None:
        actor, self.actor, self.number, self.resident = self.actor, None, None, []
        if actor is not None:
            await asyncio.to_thread(self.ray.kill, actor)
