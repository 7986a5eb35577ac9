"""OpenAI's images dialect: /v1/images and /v1/models. Fields of our own requests are taken by their names, too."""

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from inkwash.pipeline.record.metadata import embedded
from inkwash.pipeline.tasks import TASKS
from inkwash.serve import pixels
from inkwash.serve.answers import dispatcher_of, drawn, event, stream, told
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.images import encoded
from inkwash.serve.queue import ENDED, Job

router = APIRouter(prefix="/v1", tags=["OpenAI"])
# names that other servers of this dialect have given to fields of ours
ALIASES = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "scheduler": "schedule"}
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class Body(BaseModel):
    """The common fields of the three requests for pictures; more fields are those of the task's request."""

    model_config = ConfigDict(extra="allow")
    prompt: str = ""
    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = None
    response_format: Literal["url", "b64_json"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    quality: str | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)


class Prompted(Body):
    """A body whose prompt is required."""

    prompt: str  # pyright: ignore[reportGeneralTypeIssues]  it is required here


def values_of(body: Body, task: str) -> dict[str, Any]:
    """The request of a task. Raises Refusal."""
    fields = TASKS[task].request.model_fields
    given = {ALIASES.get(name, name): value for name, value in (body.model_extra or {}).items()}
    values = {name: value for name, value in given.items() if name in fields and value is not None}
    values |= {"prompt": body.prompt, "batch_size": body.n or 1}
    if size := size_of(body):
        values |= {"width": size[0], "height": size[1]}
    if body.background == "transparent":
        raise Refusal(400, "background: transparent pictures can't be drawn", "background")
    return values


def size_of(body: Body) -> tuple[int, int] | None:
    """Width and height; None for the model's own. Raises Refusal."""
    if body.size in (None, "auto"):
        return None
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", body.size or "")
    if not match:
        raise Refusal(400, f"size {str(body.size)[:40]!r} is not WIDTHxHEIGHT or auto", "size")
    return int(match[1]), int(match[2])


@router.post("/images/generations")
async def generations(request: Request, body: Prompted) -> Any:
    """Draw from a prompt."""
    job = submitted(request, body, "text_to_image", {})
    return await answer(request, body, [job], "image_generation")


@router.post("/images/edits")
async def edits(request: Request) -> Any:
    """Change pictures by a prompt, each one, or what a mask's transparent part covers of the first."""
    body, files = await form(request, Prompted)
    images = files.get("image", []) + files.get("image[]", [])
    if not images:
        raise Refusal(400, "image is missing", "image")
    masks = files.get("mask", [])
    jobs = []
    for image in images:
        mask = masks[0] if masks and image is images[0] else None
        task, given = await asyncio.to_thread(edited, image, mask, size_of(body))
        if task == "image_to_image" and sees(request, body) == "instruct-pix2pix":
            task = "instruct"
        jobs.append(submitted(request, body, task, given))
    return await answer(request, body, jobs, "image_edit")


@router.post("/images/variations")
async def variations(request: Request) -> Any:
    """Draw a picture anew, near to what it was."""
    body, files = await form(request, Body)
    if not files.get("image"):
        raise Refusal(400, "image is missing", "image")
    task = "vary" if sees(request, body) == "picture" else "image_to_image"
    job = submitted(request, body, task, {"image": files["image"][0]})
    return await answer(request, body, [job], "image_edit")


async def form(request: Request, kind: type[Body]) -> tuple[Body, dict[str, list[bytes]]]:
    """The fields and the files of a multipart body. Raises RequestValidationError."""
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=16, max_fields=200, max_part_size=1 << 20) as parts:
        for name, part in parts.multi_items():
            if isinstance(part, UploadFile):
                files.setdefault(name, []).append(await part.read())
            else:
                fields[name] = part
    try:
        return kind.model_validate(fields), files
    except ValidationError as error:
        raise RequestValidationError(
            [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
        ) from None


def edited(image: bytes, mask: bytes | None, size: tuple[int, int] | None) -> tuple[str, dict[str, bytes]]:
    """The task of an edit and its pictures; a picture that is transparent somewhere is its own mask. Raises Refusal."""
    picture = pixels.opened(image, "image")
    of = pixels.opened(mask, "mask") if mask else picture
    if "A" not in of.getbands():
        if mask:
            raise Refusal(400, "mask: it has no transparency; what is transparent is drawn anew", "mask")
        return "image_to_image", {"image": image}
    hole = ImageChops.invert(of.getchannel("A"))
    if hole.getbbox() is None and not mask:
        return "image_to_image", {"image": image}
    if hole.size != picture.size:
        raise Refusal(400, "mask: it must have the picture's size", "mask")
    picture = picture.convert("RGBA").convert("RGB")  # the colours below the transparent part stay
    if size and size != picture.size:
        picture, hole = pixels.cropped(picture, size), pixels.cropped(hole, size)
    return "inpaint", {"image": pixels.as_png(picture), "mask": pixels.as_png(hole)}


def sees(request: Request, body: Body) -> str | None:
    return dispatcher_of(request).library.resolve(body.model).about.get("sees")


def submitted(request: Request, body: Body, task: str, images: Mapping[str, bytes]) -> Job:
    return dispatcher_of(request).submit(task, values_of(body, task), images, body.model, dialect="openai")


async def answer(request: Request, body: Body, jobs: list[Job], kind: str) -> Any:
    """The pictures, at once or as a stream."""
    if body.response_format == "url" and body.output_format not in (None, "png"):
        raise Refusal(400, "output_format: with response_format url it is png", "output_format")
    if body.stream:
        return stream(streamed(request, body, jobs, kind))
    ended = await drawn(request, jobs)
    data = [await finished(request, body, job, k) for job in ended for k in range(len(job.pictures))]
    return {"created": int(time.time()), "data": data, **about(body, ended[0])}


def about(body: Body, job: Job) -> dict[str, Any]:
    first = job.pictures[0] if job.pictures else {"width": 0, "height": 0}
    return {
        "background": "opaque",
        "output_format": body.output_format or "png",
        "quality": body.quality or "auto",
        "size": f"{first['width']}x{first['height']}",
    }


async def finished(request: Request, body: Body, job: Job, k: int) -> dict[str, str]:
    """A picture as it was asked for."""
    if body.response_format == "url":
        return {"url": f"{str(request.base_url).rstrip('/')}/api/pictures/{job.id}/{k}.png"}
    path = dispatcher_of(request).folder(job.id) / f"{k}.png"
    return {"b64_json": encoded(await asyncio.to_thread(in_format, path, body))}


def in_format(path: Path, body: Body) -> bytes:
    """A picture's file in the format that was asked for, with its recipe."""
    kind = FORMATS[body.output_format or "png"]
    if kind == "PNG":
        return path.read_bytes()
    buffer = BytesIO()
    with Image.open(path) as image:
        quality = 95 if body.output_compression is None else body.output_compression
        image.save(buffer, kind, quality=quality, **embedded(image.info, kind))
    return buffer.getvalue()


async def streamed(request: Request, body: Body, jobs: list[Job], kind: str) -> AsyncIterator[str]:
    """Partial pictures while a job is drawn, then its pictures."""
    dispatcher, wanted = dispatcher_of(request), body.partial_images or 0
    try:
        for job in jobs:
            async for partial in partials(dispatcher, job, wanted):
                yield event(
                    f"{kind}.partial_image", partial | {"type": f"{kind}.partial_image"} | shown(body)
                )
            ended = dispatcher.find(job.id)
            if ended.state != "done":
                said = ended.error or f"the job is {ended.state}"
                yield event(
                    "error", {"error": {"message": said, "type": "server_error", "code": None, "param": None}}
                )
                return
            for k in range(len(ended.pictures)):
                data = await finished(request, body, ended, k)
                completed = {"type": f"{kind}.completed", "created_at": int(time.time()), **data}
                yield event(f"{kind}.completed", completed | about(body, ended))
    finally:
        for job in jobs:
            if dispatcher.find(job.id).state not in ENDED:
                dispatcher.cancel(job.id)


def shown(body: Body) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": body.quality or "auto",
        "size": body.size or "auto",
    }


async def partials(dispatcher: Dispatcher, job: Job, wanted: int) -> AsyncIterator[dict[str, Any]]:
    """Up to this many previews of a job, spread over its steps, until it ends."""
    given, share = 0, 0.0
    async for name, data in told(dispatcher, job.id):
        if name == "progress":
            share = data["step"] / data["num_steps"]
        if name == "preview" and given < wanted and share >= given / (wanted + 1):
            yield {"b64_json": preview_png(data["image"]), "partial_image_index": given}
            given += 1


def preview_png(url: str) -> str:
    """The base64 of a PNG of a preview."""
    with Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return encoded(pixels.as_png(image))


def listed(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "inkwash"}


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models."""
    names = dispatcher_of(request).library.models
    return {"object": "list", "data": [listed(name) for name in names]}


@router.get("/models/{id:path}")
async def model(request: Request, id: str) -> dict[str, Any]:
    """One model."""
    return listed(dispatcher_of(request).library.resolve(id).name)


@router.options("/{path:path}", include_in_schema=False)
async def options() -> Response:
    """Answer clients that ask by OPTIONS whether a server is there."""
    return Response(status_code=204)
