"""Pictures in requests: base64, with or without the head of a data URL."""

import base64
import binascii
from pathlib import Path

from inkwash.files import write_bytes
from inkwash.serve.errors import Refusal

# what a file begins with -> its suffix; what begins otherwise is not taken
KINDS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
}


def decoded(text: str, field: str) -> bytes:
    """The bytes of base64 or of a data URL. Raises Refusal for another text: no path and no address is opened."""
    if not isinstance(text, str):
        raise Refusal(422, f"{field} is not a picture in base64", field)
    body = text.partition(",")[2] if text[:5].lower() == "data:" else text
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, f"{field} is not a picture in base64", field) from None


def suffix_of(data: bytes, field: str) -> str:
    """The suffix of a picture by what it contains. Raises Refusal for no picture."""
    found = next((suffix for magic, suffix in KINDS.items() if data.startswith(magic)), None)
    if found is None or (found == ".webp" and data[8:12] != b"WEBP"):
        raise Refusal(422, f"{field} is not a PNG, JPEG, WebP, GIF or BMP", field)
    return found


def stored(folder: Path, role: str, data: bytes) -> Path:
    """A picture's file in a folder, named by its role."""
    path = folder / f"{role}{suffix_of(data, role)}"
    write_bytes(path, data)
    return path


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{encoded(png)}"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
