"""Pictures: drawn ones, uploads, and operations on one that need no job."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import Field

from inkwash.serve.answers import dispatcher_of
from inkwash.serve.api.bodies import Hint, Larger, Picture
from inkwash.serve.api.jobs import Id
from inkwash.serve.enlarging import enlarged
from inkwash.serve.errors import unknown
from inkwash.serve.images import data_url, decoded
from inkwash.serve.pixels import as_png

router = APIRouter()


@router.get("/pictures/{id}/{file}")
async def picture(
    request: Request, id: Id, file: Annotated[str, Field(pattern=r"^\d{1,4}\.(png|webp)$")]
) -> FileResponse:
    """A picture with its recipe inside, or its thumbnail."""
    path: Path = dispatcher_of(request).folder(id) / file
    if not path.is_file():
        raise unknown("picture", f"{id}/{file}")
    return FileResponse(path, headers={"Cache-Control": "private, max-age=31536000, immutable"})


@router.post("/uploads")
async def upload(request: Request, given: Picture) -> dict[str, str]:
    """Take in a picture; for a day its hash stands for it wherever a request takes one."""
    return {"hash": dispatcher_of(request).uploads.add(decoded(given.image, "image"))}


@router.post("/annotate")
async def annotate(request: Request, given: Hint) -> dict[str, str]:
    """Make of a picture the hint that a control sees."""
    dispatcher = dispatcher_of(request)
    numbers = given.model_dump(exclude={"kind", "image"}, exclude_none=True)
    made = await dispatcher.helper.annotate(
        given.kind, dispatcher.uploads.picture(given.image, "image"), **numbers
    )
    return {"image": data_url(made)}


@router.post("/upscale")
async def upscale(request: Request, given: Larger) -> dict[str, str]:
    """Enlarge a picture without a model that draws."""
    dispatcher = dispatcher_of(request)
    data = dispatcher.uploads.picture(given.image, "image")
    return {
        "image": data_url(as_png(await enlarged(dispatcher, data, given.upscaler, given.scale, "upscaler")))
    }


@router.post("/recipe")
async def recipe(request: Request, given: Picture) -> dict[str, Any]:
    """The task and request that a picture was made by, whatever tool wrote its metadata."""
    dispatcher = dispatcher_of(request)
    async with dispatcher.helper.file_of(decoded(given.image, "image")) as path:
        return await dispatcher.helper.ask("recipe", path=path)
