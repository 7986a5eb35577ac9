"""Routes that Krita's plugin uses beside ComfyUI's own: those of comfyui-tooling-nodes."""

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.comfy.pictures import PUT, finished, format_of, put_picture
from inkwash.serve.comfy.records import about
from inkwash.serve.errors import unknown
from inkwash.serve.images import suffix_of

router = APIRouter(prefix="/api/etn")
# the job, the node and the number of a picture
SENT_BY = re.compile(r"([0-9a-f]{24})-([\w:-]{1,40})-(\d{1,4})")
# our families' names -> the plugin's; for a model of none, as `mini`, it builds the graphs of Stable Diffusion 1
FAMILIES = {None: "sd15", "sd1": "sd15", "sdxl": "sdxl", "sdxl-refiner": "sdxl"}


@router.put("/image/{id}")
async def put_image(request: Request, id: str) -> dict[str, str]:
    """Take in a picture that a graph loads by the id."""
    if not PUT.fullmatch(id):
        raise unknown("picture", id)
    dispatcher_of(request).uploads.put(f"id-{id}", await request.body())
    return {"status": "success"}


@router.get("/image/{id}")
async def get_image(request: Request, id: str) -> Response:
    """A picture that a graph has sent, or one that was put."""
    dispatcher = dispatcher_of(request)
    if not (match := SENT_BY.fullmatch(id)):
        data = put_picture(dispatcher, id)
        return Response(data, media_type=f"image/{suffix_of(data, 'image')[1:].replace('jpg', 'jpeg')}")
    job_id, node, k = match[1], match[2], int(match[3])
    kept = about(dispatcher, job_id)
    if node not in kept["outputs"] or k >= len(dispatcher.find(job_id).pictures):
        raise unknown("picture", id)
    format = format_of(kept["graph"][node]).lower()
    data = await asyncio.to_thread(finished, dispatcher, kept, job_id, node, k)
    return Response(data, media_type=f"image/{format}")


@router.get("/model_info/{folder}")
async def model_info(request: Request, folder: str, offset: int = 0, limit: int = 1000) -> dict[str, Any]:
    """The families of models, a page at a time."""
    dispatcher = dispatcher_of(request)
    library = dispatcher.library
    await library.describe_all(dispatcher.helper)  # of those that are not known yet
    models = list(library.models.values()) if folder == "checkpoints" else []
    page: dict[str, Any] = {
        model.name: {
            "base_model": FAMILIES.get(model.about.get("family"), "unknown"),
            "is_inpaint": model.about.get("sees") == "inpainting",
            "is_refiner": model.about.get("family") == "sdxl-refiner",
        }
        for model in models[max(offset, 0) :][: max(limit, 0)]
    }
    return page | {"_meta": {"total": len(models)}}


@router.get("/languages")
async def languages() -> list[Any]:
    """None: prompts are not translated."""
    return []


@router.get("/translate/{language}/{text:path}")
async def translate(language: str, text: str) -> str:
    """The text as it is."""
    return text


@router.post("/workflow/{action}")
async def workflow(action: str) -> dict[str, Any]:
    """Nothing: no workflows are shared here."""
    return {}
