"""A drawing process, as the server sees it: calls with answers, and events between them."""

import asyncio
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from inkwash.serve.errors import Refusal, WorkerDied
from inkwash.serve.settings import Settings

LINE = 1 << 26  # bytes of an answer, at most


class Process:
    """One `inkwash.serve.worker`. settings: as its `Worker` takes them. on_event: is given what comes between answers."""

    def __init__(self, settings: Mapping[str, Any], on_event: Callable[[dict[str, Any]], None]):
        self.settings, self.on_event = settings, on_event
        self.answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.resident: list[str] = []
        self.memory: dict[str, int] = {}
        self.child: asyncio.subprocess.Process | None = None
        self.reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child else None

    @property
    def started(self) -> bool:
        return self.child is not None

    async def ready(self, wanted: Callable[[], bool]) -> bool:
        """Return True if the process can be given a job. wanted: tests for more waiting jobs than free processes."""
        return True

    async def rest(self) -> None:
        """End it where it is not needed for long. One of this machine stays."""

    async def start(self) -> None:
        """Start it, where it does not run."""
        if self.child and self.child.returncode is None and self.reader and not self.reader.done():
            return
        self.child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "inkwash.serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE,
            start_new_session=True,  # Ctrl-C is the server's alone
        )
        self.send(self.settings)
        self.reader = asyncio.create_task(self.read(self.child))

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message that has no answer."""
        if self.child and self.child.stdin and not self.child.stdin.is_closing():
            self.child.stdin.write(json.dumps(message).encode() + b"\n")

    async def read(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout
        with suppress(ValueError, ConnectionError):  # a line that is too long ends it, too
            async for line in child.stdout:
                message = json.loads(line)
                if "event" in message:
                    self.on_event(message)
                    continue
                self.resident, self.memory = message["resident"], message["memory"]
                if (waiting := self.answers.pop(message["id"], None)) and not waiting.done():
                    waiting.set_result(message)
        await ended(child)
        if self.child not in (None, child):  # another one has been started meanwhile
            return
        self.resident = []
        for waiting in self.answers.values():
            if not waiting.done():
                waiting.set_exception(WorkerDied("the drawing process has ended"))
        self.answers.clear()

    async def call(self, call: str, id: str | None = None, **arguments: Any) -> dict[str, Any]:
        """The whole answer of a call, with its `result` or its `error`. Raises WorkerDied."""
        await self.start()
        id = id or secrets.token_hex(8)
        self.answers[id] = asyncio.get_running_loop().create_future()
        answer = self.answers[id]
        self.send({"call": call, "id": id, **arguments})
        return await answer

    async def result(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call. Raises Refusal for an error."""
        try:
            answer = await self.call(call, **arguments)
        except WorkerDied as error:
            raise Refusal(500, str(error)) from error
        if "error" in answer:
            raise Refusal(STATUS[answer["error"]["kind"]], answer["error"]["message"])
        return answer["result"]

    async def stop(self) -> None:
        """End it: its stdin closes, and it does."""
        child, reader, self.child = self.child, self.reader, None
        if child and child.stdin:
            child.stdin.close()
            await ended(child)
        if reader:
            await reader


def processes_of(
    settings: Settings, load: Mapping[str, Any], on_event: Callable[[dict[str, Any]], None]
) -> list[Process]:
    """Drawing processes: one for each device of this machine, or workers of a cluster. load: keywords of `inkwash.load`."""
    how = [
        {"load": {**load, "device": device}, "resident_bytes": settings.resident_bytes}
        for device in settings.devices
    ]
    if not settings.ray:
        return [Process(each, on_event) for each in how]
    from inkwash.serve.cluster import ClusterProcess

    return [ClusterProcess(how[0], on_event, settings.devices[0]) for _ in range(settings.ray)]


async def ended(child: asyncio.subprocess.Process) -> None:
    """Wait for a process to end after it was asked to; kill it if it doesn't."""
    try:
        await asyncio.wait_for(child.wait(), 5)
    except TimeoutError:
        child.kill()
        await child.wait()


# HTTP's status of what a worker calls an error
STATUS = {"request": 422, "memory": 507, "internal": 500, "cancelled": 409}
