"""AUTOMATIC1111's `parameters` text: written, read, and turned into the values of a request.

The text is the prompt (any lines), `Negative prompt: ...` (any lines, left out if empty) and one line of `Key: value` pairs.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from inkwash.pipeline.controls import read_a1111
from inkwash.pipeline.names import (
    A1111_ETAS,
    EMPHASES,
    ETAS,
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    UPSCALER_ALIASES,
    resolve,
)
from inkwash.pipeline.option import extra
from inkwash.pipeline.task_requests import TextToImageRequest

# A1111's order; keys it does not know follow, and these two end the line.
ORDER = (
    "Steps, Sampler, Schedule type, CFG scale, Image CFG scale, Seed, Face restoration, Size, Model hash, "
    "Model, FP8 weight, Cache FP16 weight for LoRA, VAE hash, VAE, Variation seed, Variation seed strength, "
    "Seed resize from, Denoising strength, Conditional mask weight, Clip skip, ENSD, Token merging ratio, "
    "Token merging ratio hr, Init image hash, RNG, Tiling"
).split(", ")
LAST = ("Version", "User")

NEGATIVE = re.compile(r"(?:^|\n)[ \t]*Negative prompt: ?")
# A1111's own pattern, but for the bound on a key's length, which keeps reading linear.
KEY = r"\w[\w \-/]{1,79}"
PAIR = re.compile(rf'[^\S\n]*({KEY}):[^\S\n]*("(?:\\.|[^\\"])+"|[^,\n]*)(?:,|(?=\n|\Z))')
MIN_PAIRS = 3  # a line with fewer pairs is part of the prompt, by A1111's rule
BEHIND = re.compile(r"\s*(?:(?:Negative )?Template:.*)?", re.DOTALL)  # what extensions put behind the line


def format_parameters(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """A1111's text. `None` values are left out; own names of samplers and schedules become A1111's.

    `parse_parameters` is its exact inverse, unless a line of the prompt itself starts with "Negative prompt:" or ends in
    a carriage return, which the format cannot tell apart. Raises ValueError for a key that readers would not find, and
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
        lines.append(f"Negative prompt: {negative_prompt}")
    return "\n".join([*lines, pairs])


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the fields of A1111's text, all as they are written there.

    Line ends may be CRLF; blank lines and the templates of extensions may follow the fields. A text without a line of at
    least three `Key: value` pairs at its end is all prompt.
    """
    if "\r\n" in text and text.count("\n") == text.count("\r\n"):
        text = text.replace("\r\n", "\n")
    head, pairs = text, []
    for start in [0, *(match.end() for match in re.finditer("\n", text))]:
        found, end = pairs_at(text, start)
        if len(found) >= MIN_PAIRS and BEHIND.fullmatch(text, end):
            head, pairs = text[: max(0, start - 1)], found
            if found[0][0] == "Steps":  # what follows is an extension's, whatever it looks like
                break
    negative = NEGATIVE.search(head)
    prompt, negative_prompt = (head[: negative.start()], head[negative.end() :]) if negative else (head, "")
    return prompt, negative_prompt, {key: _unquote(value) for key, value in pairs}


def pairs_at(text: str, start: int) -> tuple[list[tuple[str, str]], int]:
    """The pairs of the line that begins at `start`, and where they end; quoted values may go over several lines."""
    found: list[tuple[str, str]] = []
    while (match := PAIR.match(text, start)) and match.end() > start:
        found.append((match[1], match[2].rstrip(" \t\r") if match[2][:1] != '"' else match[2]))
        start = match.end()
        if not match[0].endswith(","):
            break
    return found, start


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
        return str(json.loads(value, strict=False)) if value[:1] == value[-1:] == '"' else value
    except json.JSONDecodeError:  # other programs' quotes that are no JSON stay as they are
        return value


class Values(NamedTuple):
    """Values of a request in a text: the values of its fields, and lines on what is not applied."""

    request: dict[str, Any]
    not_applied: tuple[str, ...]


# the fields of a request that A1111's text has names for
TEXT = {
    name: key for name, field in TextToImageRequest.model_fields.items() if (key := extra(field, "a1111"))
}
NEEDED = ("Steps", "Sampler", "Seed", "Size")
# what does not change the picture, or is read elsewhere
SILENT = {
    "Size",
    "Model",
    "Model hash",
    "Refiner",
    "Prior",
    "Version",
    "User",
    "Lora hashes",
    "TI hashes",
    "Hypernet hashes",
}
SILENT |= {"Emphasis", "Prompt language", "Cache FP16 weight for LoRA"}
# values that A1111 has by default, which need no line
DEFAULTS = {
    "RNG": "CPU",
    "VAE": "Automatic",
    "Eta": "1",
    "Hires sampler": "Use same sampler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires schedule type": "Use same scheduler",
    "Hires Module 1": "Use same choices",
}
OFF = ("", "False", "false", "0", "0.0", "None", "none")
# options that extensions of A1111 and Forge write: what switches each on, our field, their value, and its companions
EXTENSIONS = (
    (("SAG Guidance Enabled", "sag_enabled"), "sag_scale", ("SAG Guidance Scale", "sag_scale"), 0.75),
    (("PAG Active", "pag_enabled"), "pag_scale", ("PAG Scale", "pag_scale"), 3.0),
    (
        ("Dynamic thresholding enabled", "dynthres_enabled"),
        "mimic_scale",
        ("Mimic scale", "dynthres_mimic_scale"),
        7.0,
    ),
)
PERCENTILE = ("Threshold percentile", "dynthres_threshold_percentile")
RESCALE = ("CFG Rescale", "CFG Rescale phi", "CFG Rescale φ", "cfg_rescale")


def request_values(prompt: str, negative_prompt: str, fields: Mapping[str, str]) -> Values:
    """The values of a text-to-image request that A1111's text describes.

    What inkwash has is applied; each other field that could change the picture gets a line. Raises ValueError where the
    text lacks what is needed, or describes a picture that was made from another one.
    """
    left = {key: value for key, value in fields.items() if key not in SILENT}
    if missing := [key for key in NEEDED if key not in fields]:
        raise ValueError(f"it does not say its {', '.join(missing)}")
    if "Denoising strength" in fields and not {"Hires upscale", "Hires resize"} & fields.keys():
        raise ValueError("it was made from another picture, which its text does not hold")
    width, _, height = fields["Size"].partition("x")
    values: dict[str, Any] = {"cfg_scale": 1, "width": width, "height": height}
    values["prompt_language"] = language_of(fields)
    values["controls"] = read_controls(left)
    read_eta(values, left)
    notes = read_hires(values, left)
    read_extensions(values, left)
    values |= {
        name: left.pop(key) for name, key in TEXT.items() if key in left and left[key] not in ("", "None")
    }
    if (name := left.pop("Hypernet", "None")) not in OFF:  # A1111 before 1.0 wrote no tag
        prompt += f"<hypernet:{name}:{left.pop('Hypernet strength', '1')}>"
    if left.pop("Tiling", "False") not in OFF:
        values["seamless"] = "both"
    notes += [
        f"{key}: {value}"
        for key, value in left.items()
        if value not in OFF and value != DEFAULTS.get(key) and not (key == "VAE hash" and "VAE" in left)
    ]
    return Values(values | {"prompt": prompt, "negative_prompt": negative_prompt}, tuple(notes))


def read_controls(left: dict[str, str]) -> list[dict[str, Any]]:
    """Take the units of the ControlNet extension out of `left`, but for those that name no model, as reference-only does."""
    controls = []
    for key in sorted(key for key in left if re.fullmatch(r"ControlNet( \d+)?", key)):
        with suppress(ValueError):
            controls.append(read_a1111(left[key]))
            del left[key]
    return controls


def read_eta(values: dict[str, Any], left: dict[str, str]) -> None:
    """Take the sampler's eta out of `left`. Without one it is A1111's default, which is not everywhere the sampler's."""
    sampler, _ = resolve(left["Sampler"])
    if sampler in ETAS:
        key, default = A1111_ETAS[sampler]
        before = (
            left.pop("Eta", str(default)) if key != "Eta" else str(default)
        )  # DDIM's key up to version 1.5
        eta = number(key, left.pop(key, before))
        values |= {} if eta == ETAS[sampler] else {"eta": eta}


def read_hires(values: dict[str, Any], left: dict[str, str]) -> list[str]:
    """Take the second pass out of `left`: its factor where the text gives a size, and an upscaler that is known."""
    notes = []
    resize = left.pop("Hires resize", "0x0")
    if "Hires upscale" not in left and resize not in ("", "0x0"):
        side, _, _ = resize.partition("x")
        if not side.isdecimal() or not values["width"].isdecimal():
            raise ValueError(f"its second pass has the size {resize!r}, which is not WIDTHxHEIGHT")
        left["Hires upscale"] = str(int(side) / int(values["width"]))
    upscaler = left.get("Hires upscaler", "latent")
    if upscaler.lower() not in {*UPSCALER_ALIASES, *UPSCALER_ALIASES.values()}:
        notes.append(f"Hires upscaler: {left.pop('Hires upscaler')}; lanczos is used in its place")
        values["hires_upscaler"] = "lanczos"
    if left.get("Hires steps") == "0":  # as many as in the first pass
        del left["Hires steps"]
    return notes


def read_extensions(values: dict[str, Any], left: dict[str, str]) -> None:
    """Take guidance that extensions of A1111 describe out of `left`."""
    for switches, name, keys, default in EXTENSIONS:
        on = any([left.pop(switch, "False") not in OFF for switch in switches])
        given = [left.pop(key) for key in keys if key in left]
        if on:
            values[name] = given[0] if given else default
    for key in PERCENTILE:
        if key in left and "mimic_scale" in values:
            share = number(key, left.pop(key))
            values["threshold_percentile"] = share / 100 if share > 1 else share  # theirs is 0 to 100
    for key in RESCALE:
        if key in left and left[key] not in OFF:
            values["cfg_rescale"] = left.pop(key)


def number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key} {text!r} is not a number") from None


def language_of(fields: Mapping[str, str]) -> str:
    """The prompt language that A1111's fields mean."""
    own = {emphasis: name for name, emphasis in EMPHASES.items() if emphasis}
    return fields.get("Prompt language", own.get(fields.get("Emphasis", ""), "a1111"))


def hashes(text: str) -> dict[str, str]:
    """Names and hashes of files, as A1111 writes those of one kind."""
    pairs = (entry.rpartition(":") for entry in text.split(",") if ":" in entry)
    return {name.strip(): digest.strip() for name, _, digest in pairs}
