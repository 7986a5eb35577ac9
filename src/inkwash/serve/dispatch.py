"""From a request to its pictures: jobs are checked, queued, given to processes that draw, and told of."""

import asyncio
import json
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inkwash.pipeline.problems import describe
from inkwash.pipeline.tasks import TASKS, Task
from inkwash.serve.errors import Refusal, WorkerDied, unknown
from inkwash.serve.images import stored, suffix_of
from inkwash.serve.models import Library, Served
from inkwash.serve.process import STATUS, Process
from inkwash.serve.queue import ENDED, WAITING, Job, Queue
from inkwash.serve.settings import Settings

log = logging.getLogger("inkwash.serve")
RETRY_AFTER = 5  # seconds
HELPER_IDLE = 120.0  # seconds after which the process for small calls ends


class Dispatcher:
    """The running server, behind all dialects. All of it runs in one event loop."""

    def __init__(self, settings: Settings):
        self.settings = settings
        settings.state.mkdir(parents=True, exist_ok=True)
        self.queue = Queue(settings.state / "queue.sqlite")
        self.library = Library(settings, self.queue)
        self.paused = bool(self.queue.kept("paused", False))
        self.closing = False
        self.started = time.time()
        self.wake: list[asyncio.Event] = []
        self.listeners: set[asyncio.Queue[tuple[str, dict[str, Any]]]] = set()
        self.ended: dict[str, list[asyncio.Future[Job]]] = {}
        self.running: dict[str, Process] = {}
        self.progress: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, float] = {}  # job -> when its first step ended
        self.preview: dict[str, str] = {}
        self.failures: dict[str, str] = {}  # job -> the kind of its error
        self.watching = 0.0  # until when somebody wants previews
        self.totals = {"pictures": 0, "seconds": 0.0}
        load = settings.load | self.library.places()
        self.processes = [
            Process(
                {"load": load | {"device": device}, "resident_bytes": settings.resident_bytes}, self.on_event
            )
            for device in settings.devices
        ]
        self.helper = Process({"load": load, "resident_bytes": None}, self.on_event)
        self.helped = 0.0
        self.tasks: list[asyncio.Task[None]] = []

    # life

    async def open(self) -> None:
        """Put back what was running when the server ended before, and start to draw."""
        self.loop = asyncio.get_running_loop()
        for job in self.queue.recover():
            log.info("job %s was interrupted; it is %s", job.id, job.state)
        for process in self.processes:
            self.wake.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self.run(process, self.wake[-1])))
        self.tasks.append(asyncio.create_task(self.describe()))
        self.tasks.append(asyncio.create_task(self.tend()))

    def drain(self) -> None:
        """Take no more work; what waits stays in the queue, and its clients are told so."""
        self.closing = True
        for listener in self.listeners:
            listener.put_nowait(("close", {}))
        for id, waiting in self.ended.items():
            if id not in self.running:
                for future in waiting:
                    if not future.done():
                        future.set_exception(Refusal(503, "the server stops; the job stays in its queue"))
        for wake in self.wake:
            wake.set()

    async def close(self) -> None:
        """Wait for what is being drawn, put back what takes too long, and end the processes."""
        self.drain()
        end = time.monotonic() + self.settings.grace
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for id in list(self.running):
            self.queue.put_back(id, counted=False)
        await asyncio.gather(*(process.stop() for process in [*self.processes, self.helper]))
        self.queue.close()

    async def describe(self) -> None:
        """Have the model at hand, and find out about the others."""
        with suppress(Refusal):
            await self.processes[0].result("load", source=self.library.resolve(None).source)
        self.helped = time.monotonic()
        await self.library.describe_all(self.helper)
        self.helped = time.monotonic()

    async def tend(self) -> None:
        """End the helper when it is idle, and tell the processes whether previews are wanted."""
        told = False
        while True:
            await asyncio.sleep(0.2)
            wanted = time.monotonic() < self.watching or bool(self.listeners)
            if wanted != told:
                for process in self.processes:
                    process.send({"watched": wanted})
                told = wanted
            if not self.helper.answers and self.helper.pid and time.monotonic() - self.helped > HELPER_IDLE:
                await self.helper.stop()

    # small calls

    async def help(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call that draws nothing, of a process of its own. Raises Refusal."""
        self.helped = time.monotonic()
        try:
            return await self.helper.result(call, **arguments)
        finally:
            self.helped = time.monotonic()

    @asynccontextmanager
    async def file_of(self, data: bytes) -> AsyncIterator[str]:
        """A picture in a temporary file."""
        suffix = suffix_of(data, "image")
        with tempfile.TemporaryDirectory(dir=self.settings.state) as folder:
            path = Path(folder) / f"image{suffix}"
            path.write_bytes(data)
            yield str(path)

    async def load(self, name: str) -> Served:
        """Make a model the current one, and have it at hand. Raises Refusal."""
        model = self.library.resolve(name)
        if model.name != self.library.current or model.source not in self.processes[0].resident:
            await self.processes[0].result("load", source=model.source)
        return self.library.choose(model.name)

    # jobs

    def submit(
        self,
        task_name: str,
        values: Mapping[str, Any],
        images: Mapping[str, bytes] | None = None,
        model: str | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        dialect: str = "api",
        priority: int = 0,
    ) -> Job:
        """A checked job in the queue. Raises Refusal."""
        if self.closing:
            raise Refusal(503, "the server stops", headers={"Retry-After": "30"})
        if task_name not in TASKS:
            raise unknown("task", task_name)
        if self.queue.length() >= self.settings.max_queue:
            raise Refusal(
                429,
                f"the queue is full: {self.settings.max_queue} jobs wait",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        task, served, given = TASKS[task_name], self.library.resolve(model), dict(images or {})
        self.check_model(task, served)
        request = checked(task, values)
        axes = {name: list(map(str, values)) for name, values in (grid or {}).items()}
        if axes and task_name != "text_to_image":
            raise Refusal(422, f"grid: the task {task_name} has none", "grid")
        self.check_size(request)
        if missing := [role for role in task.images if role not in (*given, *task.optional)]:
            raise Refusal(422, f"images: {missing[0]} is missing", missing[0])
        if extra := [role for role in given if role not in task.images]:
            raise Refusal(422, f"images: {task_name} takes no {extra[0]}", extra[0])
        id = secrets.token_hex(12)
        names = {role: f"{role}{suffix_of(data, role)}" for role, data in given.items()}
        for role, data in given.items():
            stored(self.folder(id), role, data)
        job = self.queue.add(id, task_name, served.name, request, names, axes, dialect, priority)
        self.publish(job)
        for wake in self.wake:
            wake.set()
        return job

    def check_model(self, task: Task, served: Served) -> None:
        if served.about and task.name not in served.tasks:
            raise Refusal(
                422, f"{served.name} can't do {task.name}; it does {', '.join(served.tasks)}", "model"
            )

    def check_size(self, request: Mapping[str, Any]) -> None:
        """Raises Refusal for pictures of too many pixels."""
        width, height = request["width"] or 0, request["height"] or 0
        pixels = width * height * request.get("hires", 1) ** 2
        if pixels > self.settings.max_pixels:
            raise Refusal(
                422,
                f"{width}x{height} is too large; at most {self.settings.max_pixels} pixels are drawn",
                "width",
            )

    def folder(self, id: str) -> Path:
        """Where a job's pictures are."""
        return self.settings.state / "jobs" / id

    def find(self, id: str) -> Job:
        """A job. Raises Refusal."""
        try:
            return self.queue.get(id)
        except KeyError:
            raise unknown("job", id) from None

    def cancel(self, id: str) -> Job:
        """End a job that waits at once, one that runs after its step."""
        job = self.find(id)
        if job.state in WAITING:
            return self.finish(id, "cancelled")
        if id in self.running:
            self.running[id].send({"cancel": id})
        return job

    def retry(self, id: str) -> Job:
        """The same job once more, as a new one."""
        job = self.find(id)
        images = {role: (self.folder(id) / name).read_bytes() for role, name in job.images.items()}
        return self.submit(job.task, job.request, images, job.model, job.grid, job.dialect, job.priority)

    def delete(self, id: str) -> None:
        """Remove a job that has ended or waits, and its pictures."""
        if self.find(id).state == "running":
            raise Refusal(409, "the job is running; cancel it first")
        self.queue.delete(id)
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def pause(self, paused: bool) -> None:
        """Stop or go on to take jobs from the queue; what runs ends."""
        self.paused = paused
        self.queue.keep("paused", paused)
        for wake in self.wake:
            wake.set()

    async def wait(self, id: str) -> Job:
        """A job once it has ended. Raises Refusal where the server stops before."""
        job = self.find(id)
        if job.state in ENDED:
            return job
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.ended.setdefault(id, []).append(future)
        return await future

    def refusal(self, job: Job) -> Refusal:
        """What a client that waits for a failed job is told."""
        return Refusal(STATUS[self.failures.get(job.id, "internal")], job.error or job.state)

    # drawing

    async def run(self, process: Process, wake: asyncio.Event) -> None:
        """Give one process job after job."""
        while not self.closing:
            wake.clear()
            job = None if self.paused else self.queue.claim()
            if job is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), 5)
                continue
            await self.draw(process, job)

    async def draw(self, process: Process, job: Job) -> None:
        """Have one job drawn."""
        self.running[job.id] = process
        self.publish(job)
        begun, folder = time.monotonic(), self.folder(job.id)
        try:
            served = self.library.resolve(job.model)
            answer = await process.call(
                "draw",
                id=job.id,
                task=job.task,
                source=served.source,
                request=job.request,
                images={role: str(folder / name) for role, name in job.images.items()},
                folder=str(folder),
                grid=job.grid,
            )
        except WorkerDied:
            self.running.pop(job.id)
            back = self.queue.put_back(job.id)
            log.error("the drawing process ended while it drew job %s, which is %s", job.id, back.state)
            self.settle(back)
            return
        except Refusal as refusal:  # its model has gone
            self.running.pop(job.id)
            self.failures[job.id] = "request"
            self.finish(job.id, "failed", error=refusal.message)
            return
        self.running.pop(job.id)
        if "result" in answer:
            pictures = answer["result"]["pictures"]
            self.totals["pictures"] += len(pictures)
            self.totals["seconds"] += time.monotonic() - begun
            self.finish(job.id, "done", pictures)
        elif answer["error"]["kind"] == "cancelled":
            self.finish(job.id, "cancelled")
        else:
            self.failures[job.id] = answer["error"]["kind"]
            self.finish(job.id, "failed", error=answer["error"]["message"])

    def finish(self, id: str, state: str, pictures: Sequence[Any] = (), error: str | None = None) -> Job:
        job = self.queue.end(id, state, pictures, error)
        self.settle(job)
        return job

    def settle(self, job: Job) -> None:
        """Tell of a job that has ended or waits again."""
        self.progress.pop(job.id, None)
        self.preview.pop(job.id, None)
        self.begun.pop(job.id, None)
        self.publish(job)
        if job.state in ENDED:
            log.info("job %s %s", job.id, job.state)
            for future in self.ended.pop(job.id, []):
                if not future.done():
                    future.set_result(job)

    def on_event(self, event: dict[str, Any]) -> None:
        """Steps and previews of a process."""
        if (id := event.get("id")) not in self.running:
            return
        if event["event"] == "preview":
            self.preview[id] = event["image"]
            self.tell("preview", {"id": id, "image": event["image"]})
            return
        step, num_steps, now = event["step"], event["num_steps"], time.monotonic()
        begun = self.begun.setdefault(id, now)
        left = (now - begun) / (step - 1) * (num_steps - step) if step > 1 else None
        pictures = {key: event[key] for key in ("picture", "num_pictures")}
        self.progress[id] = {"step": step, "num_steps": num_steps, "seconds_left": left, **pictures}
        self.tell("progress", {"id": id, **self.progress[id]})

    # telling

    def publish(self, job: Job) -> None:
        if self.listeners:
            self.tell("job", self.view(job))

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        for listener in self.listeners:
            if (
                listener.qsize() < 1000 or kind == "job"
            ):  # of one who does not read, only what matters is kept
                listener.put_nowait((kind, data))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[asyncio.Queue[tuple[str, dict[str, Any]]]]:
        """What is told from now on."""
        mine: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.listeners.add(mine)
        try:
            yield mine
        finally:
            self.listeners.discard(mine)

    def watch_previews(self) -> None:
        """Have previews made for the next seconds."""
        self.watching = time.monotonic() + 5

    def view(self, job: Job, positions: Mapping[str, int] | None = None) -> dict[str, Any]:
        """A job as our own API shows it."""
        position = positions.get(job.id) if positions is not None else self.queue.position(job)
        pictures = [
            picture
            | {"url": f"/api/pictures/{job.id}/{k}.png", "thumbnail": f"/api/pictures/{job.id}/{k}.webp"}
            for k, picture in enumerate(job.pictures)
        ]
        names = "id task model state priority created started finished request grid error".split()
        return {name: getattr(job, name) for name in names} | {
            "position": position,
            "progress": self.progress.get(job.id),
            "pictures": pictures,
        }


def checked(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields, validated, with random seeds where none are given. Raises Refusal."""
    given = dict(values)
    if given.get("controls"):
        raise Refusal(
            422, "controls name files of the server, which it does not open for clients", "controls"
        )
    for name in ("seed", "variation_seed"):
        if given.get(name) is None or given[name] == -1:
            drawn = name == "seed" or given.get("variation_strength")
            given[name] = secrets.randbelow(2**31) if drawn else 0
    try:
        request = task.request.model_validate(given).model_dump(mode="json")
        json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
        return request
    except UnicodeEncodeError:
        raise Refusal(422, "a text holds half of a surrogate pair, which is no character") from None
    except ValidationError as error:
        problems = error.errors()
        field = str(problems[0]["loc"][0]) if problems[0]["loc"] else None
        raise Refusal(422, "; ".join(describe(problem, str) for problem in problems), field) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise Refusal(422, str(error)) from None
