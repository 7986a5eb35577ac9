"""Pictures enlarged without a model that draws: resized, or by the file of a pixel upscaler."""

import asyncio

from PIL import Image

from inkwash.serve.checks import check_enlarged
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.pixels import as_png, opened

UPSCALERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


async def enlarged(
    dispatcher: Dispatcher, data: bytes, upscaler: str, scale: float, field: str
) -> Image.Image:
    """A picture times a factor, RGB or RGBA, by one of UPSCALERS or an upscaler of the library.

    Raises Refusal for another one, and for too large a picture. field: the one that named the upscaler.
    """
    image = opened(data, "image")
    image = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    size = round(image.width * scale), round(image.height * scale)
    try:
        check_enlarged(size)
    except ValueError as error:
        raise Refusal(422, str(error), "scale") from None
    if upscaler.lower() in UPSCALERS:
        return await asyncio.to_thread(image.resize, size, UPSCALERS[upscaler.lower()])
    path = dispatcher.library.upscaler(upscaler, field)
    device = dispatcher.settings.devices[0]
    return opened(await dispatcher.helper.enlarge(str(path), device, as_png(image), size), "image")
