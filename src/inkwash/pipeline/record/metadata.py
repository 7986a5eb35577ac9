"""A picture's recipe inside its file: A1111's `parameters` text, and the files that carry it.

The text is the prompt (any lines), `Negative prompt: ...` (any lines, left out if empty) and one last line of
`Key: value` pairs. PNG keeps it in a tEXt chunk, or iTXt where Latin-1 cannot say it; JPEG and WebP keep it
in EXIF's UserComment.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkwash.files import atomic
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES

if TYPE_CHECKING:  # Pillow is imported by those who open pictures, so that `--help` need not wait for it
    from PIL.Image import Image

# A1111's order; keys it does not know follow, and these two end the line.
ORDER = (
    "Steps, Sampler, Schedule type, CFG scale, Image CFG scale, Seed, Face restoration, Size, Model hash, "
    "Model, FP8 weight, Cache FP16 weight for LoRA, VAE hash, VAE, Variation seed, Variation seed strength, "
    "Seed resize from, Denoising strength, Conditional mask weight, Clip skip, ENSD, Token merging ratio, "
    "Token merging ratio hr, Init image hash, RNG, Tiling"
).split(", ")
LAST = ("Version", "User")

NEGATIVE = "Negative prompt:"
# A1111's own pattern, but for the bound on a key's length, which keeps reading linear.
KEY = r"\w[\w \-/]{1,79}"
PAIR = re.compile(rf'\s*({KEY}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_PAIRS = 3  # a last line with fewer pairs is part of the prompt, by A1111's rule

RECIPE = "inkwash"  # PNG: our own JSON, complete, beside A1111's text
# what other programs call their JSON in a PNG
OTHERS = {"prompt": "comfyui", "invokeai_metadata": "invokeai", "sd-metadata": "invokeai"}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MAX_JPEG_EXIF = 65_533  # bytes: the length of a JPEG segment is a 16-bit number


def format_parameters(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """A1111's text. `None` values are left out; own names of samplers and schedules become A1111's.

    `parse_parameters` is its exact inverse, unless a line of the prompt itself starts with "Negative
    prompt:", which the format cannot tell apart. Raises ValueError for a key that readers would not find, and
    for fewer than three fields, which readers would take for prompt.
    """
    values = {key: str(value) for key, value in fields.items() if value is not None}
    if len(values) < MIN_PAIRS:
        raise ValueError(f"{len(values)} fields: readers take fewer than {MIN_PAIRS} for prompt")
    for key in values:
        if not re.fullmatch(KEY, key):
            raise ValueError(f"key {key!r} is not 2 to 80 letters, digits, spaces, '-' or '/'")
    for key, names in (("Sampler", SAMPLER_NAMES), ("Schedule type", SCHEDULE_NAMES)):
        if key in values:
            values[key] = names.get(values[key], values[key])
    pairs = ", ".join(f"{key}: {_quote(values[key])}" for key in sorted(values, key=_rank))
    lines = [prompt] if prompt else []
    if negative_prompt:
        lines.append(f"{NEGATIVE} {negative_prompt}")
    return "\n".join([*lines, pairs])


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the fields of A1111's text, all as they are written there.

    A text without a line of at least three `Key: value` pairs at its end is all prompt.
    """
    head, _, last = text.rpartition("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < MIN_PAIRS:
        head, pairs = text, []
    prompt, _, negative_prompt = f"\n{head}".partition(f"\n{NEGATIVE}")
    return prompt[1:], negative_prompt.removeprefix(" "), {key: _unquote(value) for key, value in pairs}


def _rank(key: str) -> int:
    if key in LAST:
        return len(ORDER) + 1 + LAST.index(key)
    return ORDER.index(key) if key in ORDER else len(ORDER)


def _quote(value: str) -> str:
    # A1111 quotes for the first three; the rest would not come back as they went.
    plain = value and not re.search(r'[,\n:]|^"', value) and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    try:
        return json.loads(value) if value[:1] == value[-1:] == '"' else value
    except json.JSONDecodeError:  # other programs' quotes that are no JSON stay as they are
        return value


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix of `path` means. Raises ValueError if it means none."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name!r} does not end in one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def save_image(image: "Image", path: Path) -> None:
    """Write `image` whole or not at all, with the text of `image.info["parameters"]`, if any, inside.

    Raises ValueError for an unknown suffix, and for a text longer than a JPEG can hold (32,000 characters).
    """
    format = image_format(path)
    text = image.info.get("parameters")
    options: dict = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}[format]
    if text and format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("parameters", text)  # turns to iTXt by itself
        if RECIPE in image.info:
            options["pnginfo"].add_text(RECIPE, image.info[RECIPE])
    elif text:
        from PIL.Image import Exif

        exif = Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
        options["exif"] = exif.tobytes()
        if format == "JPEG" and len(options["exif"]) > MAX_JPEG_EXIF:
            raise ValueError(f"{len(text)} characters of parameters do not fit into a JPEG; use PNG or WebP")
    with atomic(path) as partial:
        image.save(partial, format, **options)


def read_parameters(path: Path) -> str | None:
    """The parameters text of the picture at `path`, None if it has none. Raises OSError for no picture."""
    with opened(path) as image:
        return parameters_of(image)


@contextmanager
def opened(path: Path) -> "Iterator[Image]":
    """The picture at `path`, whose pixels nobody has read yet. Raises OSError for no picture, or one of too many."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise OSError(f"{path}: {error}") from error
    with image:
        yield image


def parameters_of(image: "Image") -> str | None:
    """The same of a picture that is open."""
    text = image.info.get("parameters")
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(text, str):
        return text
    if isinstance(comment, str):
        return comment or None
    if not isinstance(comment, bytes) or not comment[8:]:
        return None
    code, raw = comment[:8], comment[8:]
    if code != b"UNICODE\0":
        return raw.decode("utf-8", errors="replace")
    # The standard leaves the byte order open. Most of the text is ASCII, whose high bytes are zero.
    little = raw[1::2].count(0) > raw[::2].count(0)
    return raw.decode("utf-16-le" if little else "utf-16-be", errors="replace")


def read_recipes(path: Path) -> dict[str, Any]:
    """All that the picture at `path` says of how it was made, by whom says it, the most complete first.

    "inkwash", "comfyui" and "invokeai" are JSON, "parameters" is A1111's text. Raises OSError for no picture.
    """
    with opened(path) as image:
        texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
        text = parameters_of(image)
    found: dict[str, Any] = {}
    for key, name in {RECIPE: RECIPE, **OTHERS}.items():
        try:
            content = json.loads(texts.get(key, ""))
        except ValueError:
            continue
        if isinstance(content, dict):
            found.setdefault(name, content)
    return found | ({"parameters": text} if text else {})
