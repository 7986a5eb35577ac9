"""ComfyUI's dialect: graphs are queued by /prompt, told of by /ws and /history, and looked at by /view."""

import asyncio
import base64
import re
import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import UploadFile

import inkwash
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES
from inkwash.serve.answers import dispatcher_of, told
from inkwash.serve.comfy_graph import NODES, OUTPUTS, UPSCALERS, Meant, NodeError, Reader
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.images import suffix_of
from inkwash.serve.queue import Job
from inkwash.serve.sdapi_fields import as_png, opened

router = APIRouter(tags=["ComfyUI"])
PICTURE = re.compile(r"[\w-]{0,80}_([0-9a-f]{24})_(\d{1,4})\.png")
UPLOAD = re.compile(r"[\w-]{1,80}\.(png|jpg|webp|gif|bmp)")
PREVIEW, JPEG = 1, 1  # numbers that begin a binary message


class Prompt(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt: dict[str, Any]
    client_id: str | None = None
    front: bool = False


class Which(BaseModel):
    model_config = ConfigDict(extra="ignore")
    clear: bool = False
    delete: list[str] = []


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


@router.post("/prompt")
async def prompt(request: Request, body: Prompt) -> Any:
    """Queue a graph."""
    dispatcher = dispatcher_of(request)
    try:
        meant = await asyncio.to_thread(read, dispatcher, body.prompt)
    except NodeError as error:
        return JSONResponse(wrong(error), 400)
    job = dispatcher.submit(
        meant.task,
        meant.values,
        {role: as_png(image) for role, image in meant.images.items()},
        meant.model,
        dialect="comfy",
        priority=1 if body.front else 0,
    )
    kept = {
        "graph": body.prompt,
        "outputs": meant.outputs,
        "sampler": meant.sampler,
        "client": body.client_id,
    }
    dispatcher.queue.keep(f"comfy {job.id}", kept)
    return {"prompt_id": job.id, "number": job.number, "node_errors": {}}


def read(dispatcher: Dispatcher, graph: dict[str, Any]) -> Meant:
    return Reader(graph, lambda name: loaded(dispatcher, name)).meant()


def wrong(error: NodeError) -> dict[str, Any]:
    """ComfyUI's answer for a graph that it does not run."""
    about = {
        "type": "invalid_prompt",
        "message": error.message,
        "details": error.field or "",
        "extra_info": {},
    }
    nodes = {}
    if error.node:
        about["details"] = f"Node ID '#{error.node}'"
        details = {
            "type": "value_error",
            "message": error.message,
            "details": error.field or "",
            "extra_info": {},
        }
        nodes = {error.node: {"errors": [details], "dependent_outputs": [], "class_type": error.kind}}
    return {"error": about, "node_errors": nodes}


@router.get("/prompt")
async def remaining(request: Request) -> dict[str, Any]:
    """How much is left to do."""
    return {"exec_info": {"queue_remaining": left(dispatcher_of(request))}}


def left(dispatcher: Dispatcher) -> int:
    return dispatcher.queue.length() + len(dispatcher.running)


def about(dispatcher: Dispatcher, id: str) -> dict[str, Any]:
    return dispatcher.queue.kept(f"comfy {id}", {"graph": {}, "outputs": [], "sampler": "", "client": None})


def entry(dispatcher: Dispatcher, job: Job) -> list[Any]:
    """A job as the queue lists it."""
    kept = about(dispatcher, job.id)
    return [job.number, job.id, kept["graph"], {"client_id": kept["client"]}, kept["outputs"]]


@router.get("/queue")
async def queue(request: Request) -> dict[str, Any]:
    """What runs and what waits, of this dialect."""
    dispatcher = dispatcher_of(request)
    running = [dispatcher.queue.get(id) for id in dispatcher.running]
    return {
        "queue_running": [entry(dispatcher, job) for job in running if job.dialect == "comfy"],
        "queue_pending": [
            entry(dispatcher, job) for job in dispatcher.queue.waiting() if job.dialect == "comfy"
        ],
    }


@router.post("/queue")
async def change_queue(request: Request, which: Which) -> Response:
    """Take waiting graphs out of the queue."""
    dispatcher = dispatcher_of(request)
    for job in dispatcher.queue.waiting():
        if job.dialect == "comfy" and (which.clear or job.id in which.delete):
            dispatcher.cancel(job.id)
    return Response()


@router.post("/interrupt")
async def interrupt(request: Request) -> Response:
    """End the graphs that run."""
    dispatcher = dispatcher_of(request)
    for id in list(dispatcher.running):
        if dispatcher.queue.get(id).dialect == "comfy":
            dispatcher.cancel(id)
    return Response()


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


def past(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """A job as the history has it."""
    good = job.state == "done"
    last = (
        "execution_success"
        if good
        else "execution_interrupted"
        if job.state == "cancelled"
        else "execution_error"
    )
    messages = [
        ["execution_start", {"prompt_id": job.id}],
        [last, {"prompt_id": job.id, "exception_message": job.error}],
    ]
    return {
        "prompt": entry(dispatcher, job),
        "outputs": images_of(dispatcher, job),
        "status": {"status_str": "success" if good else "error", "completed": good, "messages": messages},
        "meta": {},
    }


@router.get("/history")
async def history(request: Request, max_items: int = 200) -> dict[str, Any]:
    """Graphs that have ended, the last ones."""
    dispatcher = dispatcher_of(request)
    ended = dispatcher.queue.history(("done", "failed", "cancelled"), limit=max(1, min(max_items, 1000)))
    return {job.id: past(dispatcher, job) for job in reversed(ended) if job.dialect == "comfy"}


@router.get("/history/{id}")
async def history_of(request: Request, id: str) -> dict[str, Any]:
    """One graph, once it has ended."""
    dispatcher = dispatcher_of(request)
    with suppress(KeyError):
        job = dispatcher.queue.get(id)
        if job.finished and job.dialect == "comfy":
            return {id: past(dispatcher, job)}
    return {}


@router.post("/history")
async def change_history(request: Request, which: Which) -> Response:
    """Forget graphs that have ended, and their pictures."""
    dispatcher = dispatcher_of(request)
    for job in dispatcher.queue.history(("done", "failed", "cancelled"), limit=10_000):
        if job.dialect == "comfy" and (which.clear or job.id in which.delete):
            dispatcher.delete(job.id)
    return Response()


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


@router.get("/system_stats")
async def system_stats(request: Request) -> dict[str, Any]:
    """What the server runs on."""
    devices = dispatcher_of(request).settings.devices
    return {
        "system": {
            "os": "posix",
            "comfyui_version": f"inkwash {inkwash.__version__}",
            "embedded_python": False,
        },
        "devices": [
            {"name": device, "type": device.partition(":")[0], "index": k, "vram_total": 0, "vram_free": 0}
            for k, device in enumerate(devices)
        ],
    }


def choices(dispatcher: Dispatcher) -> dict[str, list[str]]:
    """What inputs with a list of values take, by their names."""
    library = dispatcher.library
    return {
        "ckpt_name": list(library.models),
        "lora_name": [lora["path"] for lora in library.loras()],
        "sampler_name": list(SAMPLER_NAMES),
        "scheduler": list(SCHEDULE_NAMES),
        "upscale_method": list(UPSCALERS),
        "channel": ["alpha", "red", "green", "blue"],
        "image": sorted(path.name for path in uploads(dispatcher).glob("*")),
    }


TYPES = {
    "model": "MODEL", "clip": "CLIP", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING",
    "latent_image": "LATENT", "samples": "LATENT", "mask": "MASK", "pixels": "IMAGE", "images": "IMAGE", "text": "STRING",
}  # fmt: skip
FLOATS = ("cfg", "denoise", "strength_model", "strength_clip", "scale_by")
RETURNS = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"], "LoraLoader": ["MODEL", "CLIP"], "LoraLoaderModelOnly": ["MODEL"],
    "CLIPSetLastLayer": ["CLIP"], "CLIPTextEncode": ["CONDITIONING"], "LoadImage": ["IMAGE", "MASK"],
    "LoadImageMask": ["MASK"], "InvertMask": ["MASK"], "ImageScale": ["IMAGE"], "VAEDecode": ["IMAGE"],
    "VAEDecodeTiled": ["IMAGE"], "SaveImage": [], "PreviewImage": [],
}  # fmt: skip


def node_info(kind: str, lists: dict[str, list[str]]) -> dict[str, Any]:
    """A node's inputs and outputs, as ComfyUI describes them."""

    def input_of(name: str) -> list[Any]:
        if name in lists and not (name == "image" and kind == "ImageScale"):
            return [lists[name]]
        return [TYPES.get(name) or ("IMAGE" if name == "image" else "FLOAT" if name in FLOATS else "INT")]

    return {
        "input": {"required": {name: input_of(name) for name in NODES[kind]}},
        "output": (returns := RETURNS.get(kind, ["LATENT"])),
        "output_name": returns,
        "name": kind,
        "display_name": kind,
        "description": "",
        "category": "inkwash",
        "output_node": kind in OUTPUTS,
    }


@router.get("/object_info")
async def object_info(request: Request) -> dict[str, Any]:
    """The nodes that graphs may have."""
    lists = choices(dispatcher_of(request))
    return {kind: node_info(kind, lists) for kind in NODES}


@router.get("/object_info/{kind}")
async def object_info_of(request: Request, kind: str) -> dict[str, Any]:
    """One node."""
    return {kind: node_info(kind, choices(dispatcher_of(request)))} if kind in NODES else {}


@router.get("/embeddings")
async def embeddings(request: Request) -> list[str]:
    """Embeddings by name."""
    return dispatcher_of(request).library.named("embeddings")


@router.get("/extensions")
async def extensions() -> list[str]:
    """None."""
    return []


@router.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    """What happens, as messages: text, and previews as binary ones."""
    await websocket.accept()
    dispatcher: Dispatcher = websocket.app.state.dispatcher
    sid = websocket.query_params.get("clientId") or secrets.token_hex(16)

    async def send(kind: str, **data: Any) -> None:
        await websocket.send_json({"type": kind, "data": data})

    async def status() -> None:
        await send("status", status={"exec_info": {"queue_remaining": left(dispatcher)}}, sid=sid)

    async def tell() -> None:
        async for kind, data in told(dispatcher):
            if not kind:
                continue
            kept = dispatcher.queue.kept(f"comfy {data['id']}")
            if kind == "job":
                await status()
            if kept is None:
                continue
            await message(send, websocket, dispatcher, kind, data, kept)

    await status()
    telling = asyncio.create_task(tell())
    try:
        while not telling.done():
            listening = asyncio.create_task(websocket.receive())
            await asyncio.wait({listening, telling}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                listening.cancel()
                await websocket.close(1001)
            elif listening.result()["type"] == "websocket.disconnect":
                break
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await telling


async def message(
    send: Any,
    websocket: WebSocket,
    dispatcher: Dispatcher,
    kind: str,
    data: dict[str, Any],
    kept: dict[str, Any],
) -> None:
    """Tell of one event of a graph."""
    id, sampler = data["id"], kept["sampler"]
    if kind == "progress":
        await send("progress", value=data["step"], max=data["num_steps"], prompt_id=id, node=sampler)
    elif kind == "preview":
        image = base64.b64decode(data["image"].partition(",")[2])
        await websocket.send_bytes(struct.pack(">II", PREVIEW, JPEG) + image)
    elif data["state"] == "running":
        await send("execution_start", prompt_id=id)
        await send("execution_cached", nodes=[], prompt_id=id)
        await send("executing", node=sampler, prompt_id=id)
    elif data["state"] == "done":
        for node, output in images_of(dispatcher, dispatcher.queue.get(id)).items():
            await send("executed", node=node, output=output, prompt_id=id)
        await send("execution_success", prompt_id=id)
        await send("executing", node=None, prompt_id=id)
    elif data["state"] == "failed":
        await send(
            "execution_error",
            prompt_id=id,
            node_id=sampler,
            exception_message=data["error"],
            exception_type="ValueError",
        )
    elif data["state"] == "cancelled":
        await send("execution_interrupted", prompt_id=id, node_id=sampler)
