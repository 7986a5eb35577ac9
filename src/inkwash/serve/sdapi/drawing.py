"""AUTOMATIC1111's txt2img and img2img, and the calls that end them."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from inkwash.serve.answers import dispatcher_of, drawn
from inkwash.serve.errors import Refusal
from inkwash.serve.images import decoded, encoded
from inkwash.serve.queue import Job
from inkwash.serve.sdapi import fields
from inkwash.serve.sdapi.control import controls_of
from inkwash.serve.sdapi.info import info
from inkwash.serve.sdapi.options import V1, options_of
from inkwash.serve.sdapi.progress import own_jobs

router = APIRouter()


@router.post(f"{V1}/txt2img")
async def txt2img(request: Request, body: fields.TextToImage) -> dict[str, Any]:
    """Draw from a prompt."""
    options = options_of(dispatcher_of(request)) | (body.override_settings or {})
    return await answer(request, body, "text_to_image", fields.of_text(body, options), {})


@router.post(f"{V1}/img2img")
async def img2img(request: Request, body: fields.ImageToImage) -> dict[str, Any]:
    """Change a picture, or the white part of a mask."""
    dispatcher = dispatcher_of(request)
    if not body.init_images:
        raise Refusal(404, "Init image not found", "init_images")
    if len(body.init_images) > 1:
        raise Refusal(422, "init_images: one picture a request is taken", "init_images")
    options = options_of(dispatcher) | (body.override_settings or {})
    image = decoded(body.init_images[0], "init_images")
    mask = decoded(body.mask, "mask") if body.mask else None
    model = dispatcher.library.resolve(options.get("sd_model_checkpoint"))
    sees = model.about.get("sees")
    task, wanted, images = await asyncio.to_thread(fields.of_image, body, options, image, mask, sees)
    return await answer(request, body, task, wanted, images)


async def answer(
    request: Request, body: fields.Drawing, task: str, wanted: fields.Wanted, images: dict[str, bytes]
) -> dict[str, Any]:
    """Draw, as one job for each of `n_iter`, and answer with the pictures."""
    dispatcher = dispatcher_of(request)
    settings = body.override_settings or {}
    model = dispatcher.library.resolve(settings.get("sd_model_checkpoint"))
    if settings.get("sd_model_checkpoint") and body.override_settings_restore_afterwards is False:
        dispatcher.library.choose(model.name)
    controls, hints = await controls_of(dispatcher, body, images.get("image"))
    jobs: list[Job] = []
    values = dict(wanted.values)
    for _ in range(wanted.repeats):
        job = dispatcher.submit(task, values, images, model.name, dialect="sdapi", controls=controls)
        jobs.append(job)
        step = job.request["batch_size"]
        varied = bool(job.request["variation_strength"])
        values |= {
            "seed": job.request["seed"] + (0 if varied else step),
            "variation_seed": job.request["variation_seed"] + (step if varied else 0),
        }
    ended = await drawn(request, jobs)
    files = [dispatcher.folder(job.id) / f"{k}.png" for job in ended for k in range(len(job.pictures))]
    pictures = [encoded(data) for data in [*(path.read_bytes() for path in files), *hints]]
    pictures = [] if body.send_images is False else pictures
    echo = body.model_dump()
    if not echo.pop("include_init_images", False):
        echo |= dict.fromkeys({"init_images", "mask"} & echo.keys())
    return {"images": pictures, "parameters": echo, "info": info(ended, body, model, wanted.comments)}


@router.post(f"{V1}/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Cancel this dialect's running jobs, and with them the waiting ones of the same requests."""
    dispatcher = dispatcher_of(request)
    for job in own_jobs(dispatcher):
        if job.id in dispatcher.running:
            dispatcher.cancel(job.id)
    return {}


@router.post(f"{V1}/skip")
async def skip(request: Request) -> dict[str, Any]:
    """End the picture that is being drawn; the request's next ones follow."""
    return await interrupt(request)
