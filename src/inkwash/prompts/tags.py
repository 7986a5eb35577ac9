"""LoRAs and hypernetworks in a prompt: <lora:name:strength>, <hypernet:name:strength>, in A1111's notation."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]{1,300})>")
STRENGTHS = ("te", "unet")  # of the text encoders, and of the U-Net


class Tag(NamedTuple):
    """A LoRA or hypernetwork that a prompt asks for; te and unet are its strengths, of which the latter has one."""

    name: str
    te: float = 1.0
    unet: float = 1.0
    kind: str = "lora"


def extract_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """The prompt without its tags, and the tags.

    <lora:name>, <lora:name:te>, <lora:name:te:unet> or te= and unet= by name; without unet it is te, without te 1.
    <lyco:...> is the same. <hypernet:name> or <hypernet:name:strength>. Raises ValueError for a tag that says
    something else.
    """
    tags = tuple(tag_of(match) for match in TAG.finditer(prompt))
    return TAG.sub("", prompt), tags


def protect(text: str) -> tuple[str, list[str]]:
    """The text with letters of a private range in place of its tags, and the tags, for what must not look inside them."""
    tags: list[str] = []

    def hide(match: re.Match[str]) -> str:
        tags.append(match[0])
        return f"\ue000{chr(0xE100 + len(tags) - 1)}"

    return TAG.sub(hide, text), tags


def restore(text: str, tags: Sequence[str]) -> str:
    """The text with its tags again, as often as each is there."""
    return re.sub("\ue000([\ue100-\uf8ff])", lambda match: tags[ord(match[1]) - 0xE100], text)


def written(name: str) -> str:
    """A name as it can stand in a tag: letters that mean something there as percent signs and numbers."""
    return re.sub(
        r"[%:<>{}|\[\]()\\#_,=\s]", lambda match: quote(match[0], safe="") if match[0] != "_" else "_", name
    )


def tag_of(match: re.Match[str]) -> Tag:
    kind, (name, *args) = match[1], match[2].split(":")
    if kind == "hypernet":
        if len(args) > 1:
            raise ValueError(f"{match[0]}: a hypernetwork has a name and a strength, nothing else")
        by = strength(args[0] if args else "1", match[0])
        return Tag(name.strip(), by, by, kind)
    named = {key.strip(): value for key, _, value in (arg.partition("=") for arg in args if "=" in arg)}
    placed = [arg for arg in args if "=" not in arg]
    if len(placed) > 2 or named.keys() - set(STRENGTHS):
        raise ValueError(f"{match[0]}: a LoRA has a name and the strengths te and unet, nothing else")
    given = dict(zip(STRENGTHS, placed, strict=False)) | named
    te = strength(given.get("te", "1"), match[0])
    return Tag(name.strip(), te, strength(given["unet"], match[0]) if "unet" in given else te)


def strength(text: str, tag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= 100:
        raise ValueError(f"{tag}: the strength {text.strip()!r} is not a number in -100 to 100")
    return value
