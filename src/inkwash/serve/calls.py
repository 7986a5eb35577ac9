"""What a drawing process is told to do for a job."""

from pathlib import Path
from typing import Any

from inkwash.pipeline.tasks import TASKS
from inkwash.serve.builds import BUILDS
from inkwash.serve.controls import with_files
from inkwash.serve.errors import unknown
from inkwash.serve.models import Library
from inkwash.serve.queue import Job
from inkwash.serve.settings import Settings


def call_of(job: Job, folder: Path, settings: Settings, library: Library) -> tuple[str, dict[str, Any]]:
    """The name of a call and its arguments. folder: the job's. Raises Refusal where a model or a control has gone."""
    if job.task in BUILDS:
        return job.task, BUILDS[job.task](job.request, settings, library)
    images = {role: str(folder / name) for role, name in job.images.items()}
    known = library.controls()
    names = {control["file"] for control in job.request["controls"]}
    if gone := names - known.keys():
        raise unknown("control", gone.pop())
    files = {name: str(known[name]) for name in names}
    return "draw", {
        "task": job.task,
        "source": library.resolve(job.model).source,
        "request": job.request | {"controls": with_files(job.request["controls"], files, images)},
        "images": {role: path for role, path in images.items() if role in TASKS[job.task].images},
        "grid": job.grid,
    }
