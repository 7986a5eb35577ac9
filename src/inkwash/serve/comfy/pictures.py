"""ComfyUI's pictures: uploaded ones, and those that output nodes hold."""

import asyncio
import re
import secrets
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from PIL import Image
from starlette.datastructures import UploadFile

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.comfy.links import Links
from inkwash.serve.comfy.records import about
from inkwash.serve.comfy.table import OUTPUTS, SENT
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.images import decoded, suffix_of
from inkwash.serve.pixels import as_png, opened
from inkwash.serve.queue import Job

router = APIRouter()


PICTURE = re.compile(r"[\w-]{0,80}_([0-9a-f]{24})_(\d{1,4})\.png")


PUT = re.compile(r"[\w-]{1,80}", re.ASCII)
UPLOAD = re.compile(r"[\w-]{1,80}\.(png|jpg|webp|gif|bmp)")


def put_picture(dispatcher: Dispatcher, id: str) -> bytes:
    """A picture that a client has put by an id of its choice. Raises Refusal."""
    if not PUT.fullmatch(id):
        raise unknown("uploaded picture", id)
    return dispatcher.uploads.get(f"id-{id}")


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


class Given:
    """The pictures that graphs name, and what a server's upscalers make of them. Used beside the event loop."""

    def __init__(self, dispatcher: Dispatcher):
        self.dispatcher = dispatcher

    def load(self, way: str, text: str) -> Image.Image:
        """The picture that a node loads: by "name", also "name [output]", as "base64", or by the "id" of a put one."""
        if way == "base64":
            return opened(decoded(text, "image"), "image")
        if way == "id":
            return opened(put_picture(self.dispatcher, text), "image")
        bare, _, kind = text.removesuffix("]").partition(" [")
        return opened(picture_path(self.dispatcher, bare, kind or "input").read_bytes(), "image")

    def enlarge(self, image: Image.Image, upscaler: str) -> Image.Image:
        """A picture enlarged by an upscaler of the library, by its own factor. Raises Refusal."""
        path = self.dispatcher.library.upscaler(upscaler, "model_name")
        larger = self.dispatcher.helper.enlarge(str(path), self.dispatcher.settings.devices[0], as_png(image))
        return opened(asyncio.run_coroutine_threadsafe(larger, self.dispatcher.loop).result(), "image")

    def about(self, model: str) -> Mapping[str, Any]:
        """A model's `sampling` and `zsnr`, as `Links` needs them. Raises Refusal."""
        about = self.dispatcher.library.resolve(model).about
        return {"sampling": about.get("prediction"), "zsnr": about.get("zero_terminal_snr")}

    def is_refiner(self, model: str) -> bool:
        """Return True for the name, file name or path of the refiner that the server was started with."""
        given = self.dispatcher.settings.load.get("refiner") or ""
        return bool(given) and model in (str(given), Path(given).name, Path(given).stem)


def images_of(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """The pictures of each output node."""
    kept = about(dispatcher, job.id)
    found = {}
    for node in kept["outputs"]:
        inputs = kept["graph"][node]["inputs"]
        prefix = re.sub(r"\W+", "-", str(inputs.get("filename_prefix", "ComfyUI")))[:60]
        if kept["graph"][node]["class_type"] in SENT:
            found[node] = {"images": [sent(node, kept, job.id, k) for k in range(len(job.pictures))]}
            continue
        kind = "output" if kept["graph"][node]["class_type"] == OUTPUTS[0] else "temp"
        found[node] = {
            "images": [
                {"filename": f"{prefix}_{job.id}_{k}.png", "subfolder": "", "type": kind}
                for k in range(len(job.pictures))
            ]
        }
    return found


def sent(node: str, kept: dict[str, Any], id: str, k: int) -> dict[str, str]:
    """The entry of a picture that goes by the socket, or that is fetched by its id."""
    about = kept["graph"][node]
    way = (
        {"source": "websocket"}
        if about["class_type"] == SENT[0]
        else {"source": "http", "id": f"{id}-{node}-{k}"}
    )
    return {**way, "content-type": f"image/{format_of(about).lower()}", "type": "output"}


def format_of(node: dict[str, Any]) -> str:
    return "JPEG" if str(node["inputs"].get("format")).upper() == "JPEG" else "PNG"


def finished(dispatcher: Dispatcher, kept: dict[str, Any], id: str, node: str, k: int) -> bytes:
    """The file of a job's picture as one of its nodes sends it: the drawn one with its recipe, where nothing comes after.

    kept: of the job, by `records.about`.
    """
    data = (dispatcher.folder(id) / f"{k}.png").read_bytes()
    links = Links(kept["graph"], Given(dispatcher), opened(data, "image"), kept["makers"])
    source = links.link(node, "images")[0]
    as_drawn = source in kept["makers"] or links.kind(source).startswith("VAEDecode")
    if as_drawn and format_of(kept["graph"][node]) == "PNG":
        return data
    image, buffer = links.finished(node), BytesIO()
    if format_of(kept["graph"][node]) == "JPEG":
        image.convert("RGB").save(buffer, "JPEG", quality=95)
        return buffer.getvalue()
    return as_png(image)


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
