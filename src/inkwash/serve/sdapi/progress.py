"""Progress of jobs, as AUTOMATIC1111 reports it."""

import time
from typing import Any

from fastapi import APIRouter, Request

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.queue import Job
from inkwash.serve.sdapi.fields import Loose
from inkwash.serve.sdapi.options import V1

router = APIRouter()


class TaskId(Loose):
    """The job whose progress is asked for."""

    id_task: str | None = None
    id_live_preview: int = -1
    live_preview: bool = True


def own_jobs(dispatcher: Dispatcher) -> list[Job]:
    """The dialect's jobs that run or wait, in their order."""
    running = [dispatcher.queue.get(id) for id in dispatcher.running]
    return [job for job in [*running, *dispatcher.queue.waiting()] if job.dialect == "sdapi"]


@router.get(f"{V1}/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Progress of the job that is being drawn; progress 0 and no job where nothing is."""
    dispatcher = dispatcher_of(request)
    if not skip_current_image:
        dispatcher.telling.watch_previews()
    jobs = own_jobs(dispatcher)
    running = next((job for job in jobs if job.id in dispatcher.running), None)
    told = (dispatcher.telling.progress.get(running.id) if running else None) or {}
    step, num_steps = told.get("step", 0), told.get("num_steps", 0)
    share = step / num_steps if num_steps else 0.0
    preview = dispatcher.telling.preview.get(running.id) if running and not skip_current_image else None
    return {
        "progress": max(share / len(jobs), 0.001) if jobs else 0.0,
        "eta_relative": told.get("seconds_left") or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": running.id if running else "",
            "job_count": len(jobs),
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(running.started))
            if running
            else "0",
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": num_steps,
        },
        "current_image": preview.partition(",")[2] if preview else None,
        "textinfo": None,
        "current_task": running.id if running else None,
    }


@router.post("/internal/progress")
async def internal_progress(request: Request, body: TaskId) -> dict[str, Any]:
    """Progress of a task by its id."""
    dispatcher = dispatcher_of(request)
    told = await progress(request, not body.live_preview)
    waiting = [job.id for job in dispatcher.queue.waiting()]
    active = body.id_task in dispatcher.running
    image = told["current_image"]
    return {
        "active": active,
        "queued": body.id_task in waiting,
        "completed": not active and body.id_task not in waiting,
        "progress": told["progress"] if active else None,
        "eta": told["eta_relative"] if active else None,
        "live_preview": f"data:image/jpeg;base64,{image}" if active and image else None,
        "id_live_preview": told["state"]["sampling_step"],
        "textinfo": None,
    }


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> dict[str, Any]:
    """The waiting jobs."""
    waiting = [job.id for job in dispatcher_of(request).queue.waiting()]
    return {"size": len(waiting), "tasks": waiting}
