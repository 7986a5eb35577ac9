"""ComfyUI's pictures: uploaded ones, and those that output nodes hold."""

import re
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from PIL import Image
from starlette.datastructures import UploadFile

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.comfy.graph import OUTPUTS
from inkwash.serve.comfy.records import about
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.images import suffix_of
from inkwash.serve.pixels import opened
from inkwash.serve.queue import Job

router = APIRouter()


PICTURE = re.compile(r"[\w-]{0,80}_([0-9a-f]{24})_(\d{1,4})\.png")


UPLOAD = re.compile(r"[\w-]{1,80}\.(png|jpg|webp|gif|bmp)")


def uploads(dispatcher: Dispatcher) -> Path:
    return dispatcher.settings.state / "uploads"


def picture_path(dispatcher: Dispatcher, name: str, kind: str = "input") -> Path:
    """The file of a picture that was uploaded or drawn. Raises Refusal: names lead to no other files."""
    if kind == "input" and UPLOAD.fullmatch(name):
        path = uploads(dispatcher) / name
    elif match := PICTURE.fullmatch(name):
        path = dispatcher.folder(match[1]) / f"{match[2]}.png"
    else:
        raise unknown("picture", name)
    if not path.is_file():
        raise unknown("picture", name)
    return path


def loaded(dispatcher: Dispatcher, name: str) -> Image.Image:
    """The picture that a LoadImage node names: "name", or "name [output]"."""
    bare, _, kind = name.removesuffix("]").partition(" [")
    return opened(picture_path(dispatcher, bare, kind or "input").read_bytes(), "image")


def images_of(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """What each output node holds."""
    kept = about(dispatcher, job.id)
    found = {}
    for node in kept["outputs"]:
        inputs = kept["graph"][node]["inputs"]
        prefix = re.sub(r"\W+", "-", str(inputs.get("filename_prefix", "ComfyUI")))[:60]
        kind = "output" if kept["graph"][node]["class_type"] == OUTPUTS[0] else "temp"
        found[node] = {
            "images": [
                {"filename": f"{prefix}_{job.id}_{k}.png", "subfolder": "", "type": kind}
                for k in range(len(job.pictures))
            ]
        }
    return found


@router.get("/view")
async def view(request: Request, filename: str, type: str = "output", subfolder: str = "") -> FileResponse:
    """A picture."""
    return FileResponse(picture_path(dispatcher_of(request), filename, type))


@router.post("/upload/image")
async def upload(request: Request) -> dict[str, str]:
    """Take in a picture, under a name of the server's choice."""
    dispatcher = dispatcher_of(request)
    async with request.form(max_files=1, max_fields=10) as parts:
        part = parts.get("image")
        if not isinstance(part, UploadFile):
            raise Refusal(400, "image is missing", "image")
        data, given = await part.read(), part.filename or "image"
    suffix = suffix_of(data, "image")
    stem = re.sub(r"[^\w-]+", "-", Path(given).stem, flags=re.ASCII)[:40].strip("-") or "image"
    name = f"{stem}-{secrets.token_hex(4)}{suffix}"
    uploads(dispatcher).mkdir(exist_ok=True)
    (uploads(dispatcher) / name).write_bytes(data)
    return {"name": name, "subfolder": "", "type": "input"}
