"""Calls of a drawing process for a job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inkwash.pipeline.names import UPSCALER_ALIASES, UPSCALER_NAMES
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
        "source": library.network(job.task, job.model).source,
        "request": with_upscaler(library, job.request, whole=True)
        | {"controls": with_files(job.request["controls"], files, images)},
        "images": {role: path for role, path in images.items() if role in TASKS[job.task].images},
        "grid": job.grid,
    }


def with_upscaler(library: Library, values: Mapping[str, Any], whole: bool = False) -> dict[str, Any]:
    """A request with the file of its second pass' upscaler, by its name or `whole` path; never one of the client's.

    Raises Refusal for an unknown one.
    """
    name = values.get("hires_upscaler")
    if not isinstance(name, str) or name.lower() in {*UPSCALER_ALIASES, *UPSCALER_NAMES}:
        return dict(values)
    path = library.upscaler(name, "hires_upscaler")
    return {**values, "hires_upscaler": str(path) if whole else path.name}
