"""Pictures enlarged without a model."""

from PIL import Image

from inkwash.serve.errors import Refusal

UPSCALERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
MAX_SIDE = 8192  # pixels of an enlarged picture


def enlarged(image: Image.Image, upscaler: str, scale: float, field: str) -> Image.Image:
    """A picture times a factor, by an upscaler of UPSCALERS. Raises Refusal for another one and for too large a picture.

    field: the one that named the upscaler.
    """
    if upscaler.lower() not in UPSCALERS:
        raise Refusal(422, f"{field} {upscaler[:100]!r}: no such upscaler", field)
    size = round(image.width * scale), round(image.height * scale)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise Refusal(422, f"{size[0]}x{size[1]} is not 1 to {MAX_SIDE} pixels a side", "scale")
    return image.resize(size, UPSCALERS[upscaler.lower()])
