"""A picture's recipe inside its file, in every format that is written.

PNG keeps A1111's `parameters` text and our own JSON in text chunks; JPEG and WebP keep the text in EXIF's UserComment and
the JSON in XMP.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkwash.files import write_bytes
from inkwash.pipeline.record import containers, others

if TYPE_CHECKING:  # Pillow is imported by those who open pictures, so that `--help` need not wait for it
    from PIL.Image import Image

RECIPE = "inkwash"  # our own JSON, complete, beside A1111's text
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
MAX_JPEG_EXIF = 65_533  # bytes: the length of a JPEG segment is a 16-bit number
MAX_JPEG_XMP = 65_504  # without the segment's own header


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix of `path` means. Raises ValueError if it means none."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name!r} does not end in one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def save_image(image: "Image", path: Path) -> None:
    """Write `image` whole or not at all, with its recipe (`image.info["parameters"]` and `["inkwash"]`) inside.

    Raises ValueError for an unknown suffix, and for a recipe that is too long for a JPEG: a text of over 32,000
    characters, or JSON of over 64 KiB compressed.
    """
    from PIL.Image import Image

    format, buffer = image_format(path), BytesIO()
    Image.save(image, buffer, format, **QUALITY[format], **embedded(image.info, format))
    write_bytes(path, buffer.getbuffer())


def embedded(info: Mapping[Any, Any], format: str) -> dict[str, Any]:
    """Pillow's options that put the recipe of `info` into a file of a format; none for formats that can't hold it."""
    text, recipe = info.get("parameters"), info.get(RECIPE)
    if not isinstance(text, str) or format not in QUALITY:
        return {}
    if format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_text("parameters", text)  # turns to iTXt by itself
        if recipe:
            chunks.add_text(RECIPE, recipe)
        return {"pnginfo": chunks}
    from PIL.Image import Exif

    exif = Exif()
    exif.get_ifd(containers.EXIF_IFD)[containers.USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    options: dict[str, Any] = {"exif": exif.tobytes()}
    limit = MAX_JPEG_XMP if format == "JPEG" else None
    if recipe:
        options["xmp"] = containers.recipe_packet(recipe, limit)
    if format == "JPEG" and (
        len(options["exif"]) > MAX_JPEG_EXIF or len(options.get("xmp", b"")) > MAX_JPEG_XMP
    ):
        raise ValueError(
            f"the recipe, {len(text)} characters of parameters, does not fit into a JPEG; use PNG or WebP"
        )
    return options


@contextmanager
def opened(path: Path, pixels: bool = True) -> "Iterator[Image]":
    """The picture at `path`, not decoded yet; see `opened_bytes`."""
    with file_bytes(path) as data:
        image = opened_bytes(data, path, pixels)
    with image:
        yield image


def opened_bytes(data: containers.Data, name: object, pixels: bool = True) -> "Image":
    """The picture of these bytes, not decoded yet; without `pixels`, for its size and mode alone.

    Damaged metadata are left out. name: for errors. Raises OSError for no picture, or one of too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(BytesIO(containers.essential(data, pixels)))
        except UnidentifiedImageError as error:  # whose message is of the bytes' address
            raise OSError("it is of no known format") from error
        except Image.DecompressionBombError as error:
            raise OSError(f"{name}: {error}") from error
        except (ValueError, RuntimeError) as error:  # the latter of a damaged AVIF
            raise OSError(str(error)) from error


@contextmanager
def file_bytes(path: Path) -> Iterator[containers.Data]:
    """The bytes of a regular file, mapped. Raises OSError for others."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield b""
            return
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            yield data


def read_parameters(path: Path) -> str | None:
    """The parameters text of the picture at `path`, None if it has none. Raises OSError for no picture."""
    return read_recipes(path).get("parameters")


def read_recipes(path: Path) -> dict[str, Any]:
    """All that the picture at `path` says about how it was made, by program, the most complete first.

    "inkwash", "comfyui", "invokeai" and other programs' are JSON, "parameters" is A1111's text. No pixels are read but
    those that hide NovelAI's recipe, where nothing else is there. Raises OSError for no picture.
    """
    with opened(path, pixels=False) as image:
        alpha = image.mode in ("RGBA", "LA")
    with file_bytes(path) as data:
        texts = containers.texts(data)
    found: dict[str, Any] = {}
    own = others.parsed(texts.get(RECIPE) or containers.recipe_in(texts.get("xmp", "")) or "")
    if isinstance(own, dict):
        found[RECIPE] = own
    found |= others.find(texts)
    text = next(
        filter(None, (texts.get(key) for key in ("parameters", "exif.comment", "exif.description"))), None
    )
    if text and "fooocus" not in found and not {"swarmui", "easydiffusion"} & found.keys():
        found["parameters"] = text
    if not found and alpha and (hidden := hidden_recipe(path)):
        found["novelai"] = hidden
    return found


def hidden_recipe(path: Path) -> dict[str, Any] | None:
    """NovelAI's recipe in the lowest bits of a picture's opacity, column by column; None where there is none."""
    import gzip
    import zlib

    import numpy as np

    with opened(path) as image:
        bits = (np.asarray(image.getchannel("A")).T & 1).ravel()
    magic = b"stealth_pngcomp"
    if np.packbits(bits[: 8 * len(magic)]).tobytes() != magic:
        return None
    start = 8 * len(magic) + 32
    size = int.from_bytes(np.packbits(bits[start - 32 : start]).tobytes(), "big")
    try:
        content = others.parsed(gzip.decompress(np.packbits(bits[start : start + size]).tobytes()).decode())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return None
    comment = (
        others.parsed(content["Comment"]) if isinstance(content, dict) and "Comment" in content else content
    )
    return comment if isinstance(comment, dict) else None
