"""Text inside picture files, read without decoding pixels: PNG chunks, JPEG segments, WebP chunks, EXIF and XMP.

Damaged metadata never costs the picture: what can't be read is left out, and `essential` gives a PNG without it.
"""

import base64
import mmap
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from html import escape, unescape

Data = bytes | mmap.mmap
PNG = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 64 << 20  # bytes of one text, decompressed
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# chunks that change how a PNG's pixels look; all others may be damaged and are not needed
ESSENTIAL = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
EMPTY_PIXELS = bytes.fromhex("000000004944415435af061e")  # a chunk without content
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_SEGMENT = b"Exif\0\0"
RECIPE_TAG = re.compile(r'<inkwash:recipe(?: encoding="(zlib)")?>(.*?)</inkwash:recipe>', re.DOTALL)

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
XP_COMMENT, DESCRIPTION, MAKE, CAMERA = 0x9C9C, 0x010E, 0x010F, 0x0110


def texts(data: Data) -> dict[str, str]:
    """All texts of a picture file by name: PNG's keywords, and of any format `exif.comment`, `exif.description`,
    `exif.make`, `exif.model` and `xmp`. Of several texts with one keyword the first counts."""
    found: dict[str, str] = {}
    exif = xmp = b""
    if data[:8] == PNG:
        for kind, place in png_chunks(data):
            if kind == b"eXIf":
                exif = exif or data[place]
            elif kind in TEXT_CHUNKS and (named := png_text(kind, data[place])):
                found.setdefault(*named)
        xmp = found.get("XML:com.adobe.xmp", "").encode()
    elif data[:2] == b"\xff\xd8":
        for body in jpeg_segments(data):
            if body.startswith(EXIF_SEGMENT):
                exif = exif or body
            elif body.startswith(XMP_SEGMENT):
                xmp = xmp or body.removeprefix(XMP_SEGMENT)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        for kind, place in riff_chunks(data):
            if kind == b"EXIF":
                exif = exif or data[place]
            elif kind == b"XMP ":
                xmp = xmp or data[place]
    if xmp:
        found["xmp"] = xmp.decode("utf-8", "replace")
    return found | exif_texts(exif)


def png_chunks(data: Data) -> Iterator[tuple[bytes, slice]]:
    """The kind of each chunk and where its content is, also behind the pixels; ends where the file is cut off."""
    place = len(PNG)
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if place + 12 + size > len(data):
            return
        yield kind, slice(place + 8, place + 8 + size)
        place += 12 + size


def png_text(kind: bytes, body: bytes) -> tuple[str, str] | None:
    """Keyword and text of a tEXt, zTXt or iTXt chunk; None for a damaged one."""
    key, separator, rest = body.partition(b"\0")
    if not separator:
        return None
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return name, rest.decode("latin-1")
    compressed, encoding = True, "latin-1"
    if kind == b"iTXt":
        compressed, encoding = rest[:1] == b"\1", "utf-8"
        parts = rest[2:].split(b"\0", 2)  # language, translated keyword, text
        if len(parts) < 3:
            return None
        rest = parts[2]
    else:
        rest = rest[1:]  # the compression method, of which there is one
    raw = inflated(rest) if compressed else rest
    return None if raw is None else (name, raw.decode(encoding, "replace"))


def inflated(data: bytes) -> bytes | None:
    """The decompressed bytes; None where they are damaged or more than MAX_TEXT."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, MAX_TEXT)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else raw


def essential(data: Data, pixels: bool = True) -> bytes:
    """A PNG with what its pixels need alone, an intact EXIF block included, or its head; other files as they are."""
    if data[:8] != PNG:
        return data[:]
    parts = [PNG]
    for kind, place in png_chunks(data):
        if kind == b"IDAT" and not pixels:
            break
        if kind in ESSENTIAL or (kind == b"eXIf" and exif_tags(data[place])):
            parts.append(data[place.start - 8 : place.stop + 4])
    return b"".join(parts) + (b"" if pixels else EMPTY_PIXELS)


def jpeg_segments(data: Data) -> Iterator[bytes]:
    """The content of each application segment and comment before the pixels."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in (0xD9, 0xDA):  # the end, and the pixels
            return
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            yield data[place + 4 : place + 2 + size]
        place += 2 + max(2, size)


def riff_chunks(data: Data) -> Iterator[tuple[bytes, slice]]:
    """The kind of each chunk of a WebP file and where its content is."""
    place = 12
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        yield kind, slice(place + 8, place + 8 + size)
        place += 8 + size + size % 2


def exif_tags(data: bytes) -> dict[int, object]:
    """The tags of an EXIF block and of its Exif part; nothing of a damaged one."""
    from PIL.Image import Exif

    if not data:
        return {}
    exif = Exif()
    try:
        with warnings.catch_warnings(action="ignore"):
            exif.load(data if data.startswith(EXIF_SEGMENT) else EXIF_SEGMENT + data)
            return dict(exif) | dict(exif.get_ifd(EXIF_IFD))
    except Exception:  # whatever a damaged block makes Pillow raise, the picture stays readable
        return {}


def exif_texts(data: bytes) -> dict[str, str]:
    """The texts of an EXIF block, by our names for its tags."""
    tags = exif_tags(data)
    named = {
        "exif.comment": tags.get(USER_COMMENT) or tags.get(XP_COMMENT),
        "exif.description": tags.get(DESCRIPTION),
        "exif.make": tags.get(MAKE),
        "exif.model": tags.get(CAMERA),
    }
    decoded = {name: comment_text(value) for name, value in named.items()}
    return {name: text for name, text in decoded.items() if text}


def comment_text(value: object) -> str:
    """The text of an EXIF value in any of the encodings that programs write."""
    if isinstance(value, tuple) and all(isinstance(part, int) and 0 <= part < 256 for part in value):
        value = bytes(value)  # XPComment in some versions of Pillow
    if isinstance(value, str):
        return value.strip("\0")
    if not isinstance(value, bytes):
        return ""
    code, raw = value[:8].upper(), value[8:]
    if code.rstrip(b"\0 ") in (b"UNICODE", b"ASCII", b"JIS"):
        if code.startswith(b"JIS"):
            return raw.decode("iso2022_jp", "replace").strip("\0 ")
        return unicode_text(raw).strip("\0").removesuffix(" ")
    return unicode_text(raw if code == bytes(8) else value).strip("\0")


def unicode_text(raw: bytes) -> str:
    """UTF-8, or UTF-16 in either byte order, with or without a mark of it.

    EXIF leaves the byte order open, and EXIF 3 writes UTF-8. UTF-16 is told by its zero bytes: most text is ASCII.
    """
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ):
        if raw.startswith(mark):
            return raw.removeprefix(mark).decode(encoding, "replace")
    body = raw.rstrip(b"\0")  # some pad with zeros
    even, odd = body[::2].count(0), body[1::2].count(0)
    if not even and not odd:
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:  # UTF-16 without an ASCII letter
            pass
    return raw[: len(raw) // 2 * 2].decode("utf-16-le" if odd > even else "utf-16-be", "replace")


def recipe_packet(recipe: str, limit: int | None = None) -> bytes:
    """XMP that holds a recipe, compressed where it is longer than `limit` bytes otherwise."""
    packet = xmp_packet(f"<inkwash:recipe>{escape(recipe, quote=False)}</inkwash:recipe>")
    if limit is None or len(packet) <= limit:
        return packet
    packed = base64.b64encode(zlib.compress(recipe.encode(), 9)).decode()
    return xmp_packet(f'<inkwash:recipe encoding="zlib">{packed}</inkwash:recipe>')


def xmp_packet(element: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:inkwash="urn:inkwash:recipe:1">{element}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def recipe_in(xmp: str) -> str | None:
    """The recipe that `recipe_packet` stored, None where there is none or it is damaged."""
    match = RECIPE_TAG.search(xmp)
    if not match:
        return None
    if not match[1]:
        return unescape(match[2])
    try:
        raw = inflated(base64.b64decode(match[2]))
    except ValueError:
        return None
    return None if raw is None else raw.decode("utf-8", "replace")
