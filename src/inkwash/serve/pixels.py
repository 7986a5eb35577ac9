"""Pictures in requests, decoded, and fitted to a size. Imports no torch."""

from io import BytesIO

from PIL import Image, ImageOps

from inkwash.serve.errors import Refusal
from inkwash.serve.images import suffix_of

MAX_PIXELS = 2**26


def opened(data: bytes, field: str) -> Image.Image:
    """A picture, decoded. Raises Refusal."""
    suffix_of(data, field)
    try:
        image = Image.open(BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Refusal(
                422, f"{field} has {image.width}x{image.height} pixels; at most 2^26 are taken", field
            )
        image.load()
        return image
    except Refusal:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise Refusal(422, f"{field} is not a readable picture: {type(error).__name__}", field) from None


def as_mask(image: Image.Image) -> Image.Image:
    """Opacity where a mask is not opaque everywhere, else its light: as A1111."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return image.getchannel("A")
    return image.convert("L")


def as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    clean = Image.Image.copy(image)
    clean.info = {}
    clean.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def filled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole picture in the middle, and its edges drawn out to the sides."""
    inner = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
    whole = inner.resize(size, box=(0, 0, inner.width, inner.height))
    if top:
        whole.paste(inner.crop((0, 0, inner.width, 1)).resize((size[0], top)), (0, 0))
        last = inner.crop((0, inner.height - 1, inner.width, inner.height))
        whole.paste(last.resize((size[0], size[1] - top - inner.height)), (0, top + inner.height))
    if left:
        whole.paste(inner.crop((0, 0, 1, inner.height)).resize((left, size[1])), (0, 0))
        last = inner.crop((inner.width - 1, 0, inner.width, inner.height))
        whole.paste(last.resize((size[0] - left - inner.width, size[1])), (left + inner.width, 0))
    whole.paste(inner, (left, top))
    return whole


RESIZE = {0: stretched, 1: cropped, 2: filled, 3: stretched}


def resized(data: bytes, size: tuple[int, int], mode: int) -> bytes:
    """A picture of another size, by A1111's modes; itself where it has the size."""
    image = opened(data, "init_images")
    return data if image.size == size else as_png(RESIZE[mode](image.convert("RGB"), size))
