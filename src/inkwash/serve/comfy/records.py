"""What is kept of a graph that became a job."""

from typing import Any

from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.queue import Job


def left(dispatcher: Dispatcher) -> int:
    return dispatcher.queue.length() + len(dispatcher.running)


def about(dispatcher: Dispatcher, id: str) -> dict[str, Any]:
    return dispatcher.queue.kept(f"comfy {id}", {"graph": {}, "outputs": [], "sampler": "", "client": None})


def entry(dispatcher: Dispatcher, job: Job) -> list[Any]:
    """A job as the queue lists it."""
    kept = about(dispatcher, job.id)
    return [job.number, job.id, kept["graph"], {"client_id": kept["client"]}, kept["outputs"]]
