"""The way of a request to its pictures: jobs are checked, queued, and given to processes that draw."""

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from inkwash.pipeline.tasks import TASKS
from inkwash.serve import controls as steering
from inkwash.serve.builds import BUILDS, make_result_folders
from inkwash.serve.calls import call_of, with_upscaler
from inkwash.serve.checks import check_model, check_roles, check_size, checked
from inkwash.serve.controls import GivenControl
from inkwash.serve.errors import Refusal, WorkerDied, unknown
from inkwash.serve.helper import Helper
from inkwash.serve.images import stored, suffix_of
from inkwash.serve.models import Library, Served
from inkwash.serve.process import STATUS, Process, processes_of
from inkwash.serve.queue import ENDED, WAITING, Job, Queue
from inkwash.serve.settings import Settings
from inkwash.serve.telling import Telling, picture_url
from inkwash.serve.uploads import Uploads

log = logging.getLogger("inkwash.serve")
RETRY_AFTER = 5  # seconds


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
        self.telling = Telling()
        self.uploads = Uploads(settings.state / "sent")
        self.ended: dict[str, list[asyncio.Future[Job]]] = {}
        self.running: dict[str, Process] = {}
        self.set_aside: set[str] = set()  # jobs that are to go on with the next server
        self.failures: dict[str, str] = {}  # job -> the kind of its error
        self.totals = {"pictures": 0, "seconds": 0.0}
        if settings.data and settings.models:
            make_result_folders(settings, self.library)
        load = settings.load | self.library.places()
        self.processes = processes_of(settings, load, self.on_event)
        self.helper = Helper(load, settings.state)
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
        """Take no more work; waiting jobs stay in the queue, and their clients are notified."""
        self.closing = True
        self.telling.close()
        for id, process in self.running.items():
            if self.queue.get(id).task in BUILDS:  # they take long, and save where they are
                self.set_aside.add(id)
                process.send({"cancel": id})
        for id, waiting in self.ended.items():
            if id not in self.running:
                for future in waiting:
                    if not future.done():
                        future.set_exception(Refusal(503, "the server stops; the job stays in its queue"))
        for wake in self.wake:
            wake.set()

    async def close(self) -> None:
        """Wait for running jobs, put back those that take too long, and end the processes."""
        self.drain()
        end = time.monotonic() + self.settings.grace
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for id in list(self.running):
            self.queue.put_back(id, counted=False)
        await asyncio.gather(*(process.stop() for process in [*self.processes, self.helper.process]))
        self.queue.close()

    async def describe(self) -> None:
        """Have the model at hand, and find out about the others."""
        with suppress(Refusal):
            await self.processes[0].result("load", source=self.library.resolve(None).source)
        await self.library.describe_all(self.helper)
        await self.helper.rest(0)

    async def tend(self) -> None:
        """End the helper when it is idle, and switch the processes' previews on or off."""
        told = False
        while True:
            await asyncio.sleep(0.2)
            wanted = self.telling.watched
            if wanted != told:
                for process in self.processes:
                    process.send({"watched": wanted})
                told = wanted
            await self.helper.rest()
            for process in self.processes[1:]:
                await process.rest()

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
        controls: Sequence[GivenControl] = (),
    ) -> Job:
        """A checked drawing in the queue. Raises Refusal."""
        if task_name not in TASKS:
            raise unknown("task", task_name)
        self.check_room()
        task, served, given = TASKS[task_name], self.library.network(task_name, model), dict(images or {})
        check_model(task, served)
        request = checked(task, with_upscaler(self.library, values))
        axes = {name: list(map(str, values)) for name, values in (grid or {}).items()}
        if axes and task_name != "text_to_image":
            raise Refusal(422, f"grid: the task {task_name} has none", "grid")
        check_size(request, self.settings.max_pixels)
        check_roles(task, tuple(given))
        names = {control.name: self.library.control(control.name) for control in controls}
        nothing = "image" not in given and not (task.by_prior and served.prior)  # for controls to see
        request["controls"], seen = steering.resolved(controls, names, nothing)
        return self.put(task_name, served.name, request, given | seen, axes, dialect, priority)

    def check_room(self) -> None:
        """Check that the queue takes another job; raise Refusal if it is full or the server is stopping."""
        if self.closing:
            raise Refusal(503, "the server stops", headers={"Retry-After": "30"})
        if self.queue.length() >= self.settings.max_queue:
            raise Refusal(
                429,
                f"the queue is full: {self.settings.max_queue} jobs wait",
                headers={"Retry-After": str(RETRY_AFTER)},
            )

    def put(
        self,
        task: str,
        model: str,
        request: dict[str, Any],
        images: Mapping[str, bytes],
        grid: dict[str, list[str]],
        dialect: str,
        priority: int,
    ) -> Job:
        """A job in the queue, of a request that was checked. Raises Refusal where there is no room."""
        self.check_room()
        id = secrets.token_hex(12)
        names = {role: f"{role}{suffix_of(data, role)}" for role, data in images.items()}
        for role, data in images.items():
            stored(self.folder(id), role, data)
        job = self.queue.add(id, task, model, request, names, grid, dialect, priority)
        self.publish(job)
        for wake in self.wake:
            wake.set()
        return job

    def folder(self, id: str) -> Path:
        """The folder of a job's pictures."""
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
        """Put the same job into the queue once more, as a new one."""
        job = self.find(id)
        images = {role: (self.folder(id) / name).read_bytes() for role, name in job.images.items()}
        return self.put(job.task, job.model, job.request, images, job.grid, job.dialect, job.priority)

    def delete(self, id: str) -> None:
        """Remove a job that has ended or waits, and its pictures."""
        if self.find(id).state == "running":
            raise Refusal(409, "the job is running; cancel it first")
        self.queue.delete(id)
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def pause(self, paused: bool) -> None:
        """Stop or resume taking jobs from the queue; running jobs are finished."""
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
        """The refusal for a client that waits for a failed job."""
        return Refusal(STATUS[self.failures.get(job.id, "internal")], job.error or job.state)

    # drawing

    async def run(self, process: Process, wake: asyncio.Event) -> None:
        """Give one process job after job."""
        while not self.closing:
            wake.clear()
            ready = not self.paused and await process.ready(self.more_wanted)
            job = self.queue.claim() if ready and not self.paused and not self.closing else None
            if job is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), 5)
                continue
            await self.draw(process, job)

    def more_wanted(self) -> bool:
        """Return True if more jobs wait than processes are free."""
        busy = self.running.values()
        free = sum(process.started and process not in busy for process in self.processes)
        return self.queue.num_ready() > free

    async def draw(self, process: Process, job: Job) -> None:
        """Have one job drawn."""
        self.running[job.id] = process
        self.publish(job)
        begun, folder = time.monotonic(), self.folder(job.id)
        try:
            call, arguments = call_of(job, folder, self.settings, self.library)
            answer = await process.call(call, id=job.id, folder=str(folder), **arguments)
        except WorkerDied:
            self.running.pop(job.id)
            back = self.queue.put_back(job.id)
            log.error("the drawing process ended while it drew job %s, which is %s", job.id, back.state)
            self.settle(back)
            return
        except Exception as error:  # whatever one job ends in, the next one is drawn
            self.running.pop(job.id)
            if isinstance(error, Refusal):  # its model has gone
                kind, message = "request", error.message
            else:
                kind, message = "internal", "the server has failed; its log says more"
                log.error("job %s failed", job.id, exc_info=error)
            self.failures[job.id] = kind
            self.finish(job.id, "failed", error=message)
            return
        self.running.pop(job.id)
        if "result" in answer:
            pictures = answer["result"]["pictures"]
            self.totals["pictures"] += len(pictures)
            self.totals["seconds"] += time.monotonic() - begun
            self.finish(job.id, "done", pictures)
        elif answer["error"]["kind"] == "cancelled":
            if job.id in self.set_aside:
                self.settle(self.queue.put_back(job.id, counted=False))
            else:
                self.finish(job.id, "cancelled")
        else:
            self.failures[job.id] = answer["error"]["kind"]
            self.finish(job.id, "failed", error=answer["error"]["message"])

    def finish(self, id: str, state: str, pictures: Sequence[Any] = (), error: str | None = None) -> Job:
        job = self.queue.end(id, state, pictures, error)
        self.settle(job)
        return job

    def settle(self, job: Job) -> None:
        """Publish the state of a job that has ended or waits again."""
        if job.task in BUILDS and (progress := self.telling.progress.get(job.id)):
            self.queue.keep(f"progress {job.id}", progress | {"seconds_left": None})
            if job.state == "done":
                self.library.refresh()
                self.tasks.append(asyncio.create_task(self.library.describe_all(self.helper)))
        self.telling.forget(job.id)
        self.publish(job)
        if job.state in ENDED:
            log.info("job %s %s", job.id, job.state)
            for future in self.ended.pop(job.id, []):
                if not future.done():
                    future.set_result(job)

    def on_event(self, event: dict[str, Any]) -> None:
        """Steps and previews of a process."""
        if event.get("id") in self.running:
            self.telling.on_event(event)

    def publish(self, job: Job) -> None:
        if self.telling.listeners:
            self.telling.tell("job", self.view(job))

    def view(self, job: Job, positions: Mapping[str, int] | None = None) -> dict[str, Any]:
        """A job as our own API shows it."""
        position = positions.get(job.id) if positions is not None else self.queue.position(job)
        pictures = [
            picture | {"url": picture_url(job.id, f"{k}.png"), "thumbnail": picture_url(job.id, f"{k}.webp")}
            for k, picture in enumerate(job.pictures)
        ]
        progress = self.telling.progress.get(job.id)
        if job.task in BUILDS and progress is None:
            progress = self.queue.kept(f"progress {job.id}")
        names = "id task model state priority created started finished request grid error".split()
        return {name: getattr(job, name) for name in names} | {
            "position": position,
            "progress": progress,
            "pictures": pictures,
        }
