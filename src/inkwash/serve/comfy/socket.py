"""ComfyUI's socket: what happens, as messages."""

import asyncio
import base64
import secrets
import struct
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from inkwash.serve.answers import told
from inkwash.serve.comfy.pictures import finished, format_of, images_of
from inkwash.serve.comfy.records import about, left
from inkwash.serve.comfy.table import SENT
from inkwash.serve.dispatch import Dispatcher

router = APIRouter()


PREVIEW, JPEG, PNG = 1, 1, 2  # numbers that begin a binary message


@router.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    """Events as messages: text, and previews as binary ones."""
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
            kept = about(dispatcher, data["id"])
            if kind == "job":
                await status()
            if not kept["graph"]:
                continue
            mine = kept["client"] in (None, sid)
            await message(send, websocket, dispatcher, kind, data, kept, mine)

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
    mine: bool,
) -> None:
    """Tell of one event of a graph. mine: whether pictures that the graph sends are for this client."""
    id, sampler = kept["id"], kept["sampler"]
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
        job = dispatcher.queue.get(data["id"])
        for node, output in images_of(dispatcher, job).items():
            if mine and kept["graph"][node]["class_type"] == SENT[0]:
                format = PNG if format_of(kept["graph"][node]) == "PNG" else JPEG
                for k in range(len(job.pictures)):
                    image = await asyncio.to_thread(finished, dispatcher, kept, job.id, node, k)
                    await websocket.send_bytes(struct.pack(">II", PREVIEW, format) + image)
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
