"""Records of graphs that became jobs."""

from typing import Any

from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.queue import Job


def left(dispatcher: Dispatcher) -> int:
    return dispatcher.queue.length() + len(dispatcher.running)


def about(dispatcher: Dispatcher, id: str) -> dict[str, Any]:
    """The record of a job's graph. id: by which its client knows it."""
    none = {"id": id, "graph": {}, "outputs": [], "makers": [], "sampler": "", "client": None}
    return none | dispatcher.queue.kept(f"comfy {id}", {})


def keep(dispatcher: Dispatcher, job_id: str, id: str, values: dict[str, Any]) -> None:
    """Remember a job's graph, and the id by which its client knows it."""
    dispatcher.queue.keep(f"comfy {job_id}", values | {"id": id})
    if id != job_id:
        dispatcher.queue.keep(f"comfy-id {id}", job_id)


def find(dispatcher: Dispatcher, id: str) -> Job | None:
    """The job that a client knows by an id."""
    try:
        job = dispatcher.queue.get(dispatcher.queue.kept(f"comfy-id {id}", id))
    except KeyError:
        return None
    return job if job.dialect == "comfy" else None


def entry(dispatcher: Dispatcher, job: Job) -> list[Any]:
    """A job as the queue lists it."""
    kept = about(dispatcher, job.id)
    return [job.number, kept["id"], kept["graph"], {"client_id": kept["client"]}, kept["outputs"]]
