"""AUTOMATIC1111's routes for existing pictures: read their texts, and enlarge them."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import read_recipes
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.enlarging import enlarged
from inkwash.serve.errors import Refusal
from inkwash.serve.images import decoded, encoded
from inkwash.serve.pixels import as_png, cropped, opened
from inkwash.serve.sdapi.fields import Loose
from inkwash.serve.sdapi.options import V1

router = APIRouter()


class OnePicture(Loose):
    """A picture in base64."""

    image: str = ""


class Extras(Loose):
    """The options of extra-single-image and extra-batch-images that enlarge."""

    resize_mode: int = 0
    upscaling_resize: float = 2
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = 0
    gfpgan_visibility: float = 0
    codeformer_visibility: float = 0
    image: str = ""
    imageList: list[dict[str, Any]] = []


@router.post(f"{V1}/png-info")
async def png_info(request: Request, body: OnePicture) -> dict[str, Any]:
    """The text in a picture."""
    dispatcher = dispatcher_of(request)
    async with dispatcher.helper.file_of(decoded(body.image, "image")) as path:
        try:
            found = await asyncio.to_thread(read_recipes, Path(path))
        except OSError:
            raise Refusal(422, "the picture can't be read", "image") from None
    text = found.get("parameters", "")
    values: dict[str, Any] = {}
    if text:
        prompt, negative, values = parse_parameters(text)
        values = {"Prompt": prompt, "Negative prompt": negative, **values}
    return {"info": text, "items": {key: str(value) for key, value in found.items()}, "parameters": values}


@router.post(f"{V1}/extra-single-image")
async def extra_single_image(request: Request, body: Extras) -> dict[str, Any]:
    """Enlarge a picture."""
    made = await in_size(dispatcher_of(request), decoded(body.image, "image"), body)
    return {"html_info": "", "image": made}


@router.post(f"{V1}/extra-batch-images")
async def extra_batch_images(request: Request, body: Extras) -> dict[str, Any]:
    """Enlarge several pictures."""
    if not body.imageList:
        raise Refusal(422, "imageList is empty", "imageList")
    pictures = [decoded(one.get("data", ""), "imageList") for one in body.imageList]
    dispatcher = dispatcher_of(request)
    return {"html_info": "", "images": [await in_size(dispatcher, data, body) for data in pictures]}


async def in_size(dispatcher: Dispatcher, data: bytes, body: Extras) -> str:
    """Base64 of a picture in another size. Raises Refusal."""
    image = opened(data, "image")
    if body.gfpgan_visibility or body.codeformer_visibility:
        raise Refusal(422, "this server has no face restorer", "gfpgan_visibility")
    if body.upscaler_2 != "None" and body.extras_upscaler_2_visibility:
        raise Refusal(422, "upscaler_2: one upscaler is used", "upscaler_2")
    if body.upscaler_1 == "None":
        return encoded(as_png(image))
    scale = body.upscaling_resize
    if body.resize_mode == 1:
        scale = max(body.upscaling_resize_w / image.width, body.upscaling_resize_h / image.height)
    made = await enlarged(dispatcher, data, body.upscaler_1, scale, "upscaler_1")
    if body.resize_mode == 1 and body.upscaling_crop:
        made = cropped(made, (body.upscaling_resize_w, body.upscaling_resize_h))
    return encoded(as_png(made))


@router.post(f"{V1}/interrogate")
async def interrogate() -> dict[str, Any]:
    """No model here describes pictures."""
    raise Refusal(404, "this server has no model that describes pictures", "model")
