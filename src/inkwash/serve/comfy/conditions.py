"""Nodes that give a prompt something to see: controls' hints, and a picture's vector."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from inkwash.serve.comfy.links import Links
from inkwash.serve.comfy.table import NODES, UNION_TYPES
from inkwash.serve.comfy.tiling import Hint

MOST_NOISE = 999  # the last level of noise on a vector


def hints(links: Links, id: str) -> list[Hint]:
    """The control that a node applies; none where its strength is 0. Raises NodeError."""
    loader = links.source(id, "control_net", "ControlNetLoader", "SetUnionControlNetType")
    values: dict[str, Any] = {"annotator": "none", "weight": links.number(id, "strength")}
    if links.kind(loader) == "SetUnionControlNetType":
        values["type"] = links.one_of(loader, "type", UNION_TYPES)
        loader = links.source(loader, "control_net", "ControlNetLoader")
    for ours, theirs in (("start", "start_percent"), ("end", "end_percent")):
        if theirs in NODES[links.kind(id)]:
            values[ours] = links.number(id, theirs)
    name = links.value(loader, "control_net_name", str)
    return [Hint(name, values, links.image(*links.link(id, "image")), id)] if values["weight"] else []


def prompt_of(links: Links, id: str, name: str) -> tuple[str, dict[str, Any]]:
    """An encoder's text, and what those of SDXL say beside it, as options of a request. name: positive or negative."""
    kind = links.kind(id)
    if kind == "CLIPTextEncode":
        return links.value(id, "text", str), {}
    size = links.side(id, "width"), links.side(id, "height")
    if kind == "CLIPTextEncodeSDXLRefiner":
        score = "aesthetic" if name == "positive" else "negative_aesthetic"
        return links.value(id, "text", str), {"original_size": size, score: links.number(id, "ascore")}
    text = links.value(id, "text_g", str)
    if links.value(id, "text_l", str) != text:
        raise links.fail(id, "text_l must be text_g here", "text_l")
    crop = links.value(id, "crop_w", int), links.value(id, "crop_h", int)
    target = links.side(id, "target_width"), links.side(id, "target_height")
    return text, {"original_size": size, "crop": crop, "target_size": target}


def same_sizes(links: Links, sampler: str, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of both prompts, whose sizes must be the same. Raises NodeError."""
    sizes = [{key: some for key, some in each.items() if "aesthetic" not in key} for each in told.values()]
    if any(some != sizes[0] for some in sizes):
        raise links.fail(sampler, "both prompts must be told the same sizes", "negative")
    return {key: some for each in told.values() for key, some in each.items()}


def varied(
    links: Links, sampler: str, seen: Sequence[str], task: str, values: Mapping[str, Any], model: str
) -> tuple[str, dict[str, Any], dict[str, Image.Image]]:
    """The task, its own options and the picture of a sampler whose prompt has a picture's vector beside it.

    seen: the nodes that put it there. task, values: of the sampler without it. Raises NodeError for what `vary` can't mean.
    """
    id = seen[0]
    if len(seen) > 1:
        raise links.fail(id, "one picture is varied here", "conditioning")
    if task != "text_to_image" or "hires" in values:
        raise links.fail(sampler, "a picture is varied from an empty latent, in one pass", "latent_image")
    if (strength := links.number(id, "strength")) != 1:
        raise links.fail(id, f"strength {strength:g} must be 1 here", "strength")
    noise = links.within(id, "noise_augmentation", 1, (int, float))
    encode = links.source(id, "clip_vision_output", "CLIPVisionEncode")
    loader = links.source(encode, "clip_vision", "unCLIPCheckpointLoader", "CLIPVisionLoader")
    (name,) = NODES[links.kind(loader)]
    if (eye := links.value(loader, name, str)) != model:
        raise links.fail(
            loader, f"{name} {eye[:60]!r} must be {model[:60]!r}, which sees by its own CLIP", name
        )
    image = links.image(*links.link(encode, "image"))
    if links.value(encode, "crop", str) != "center" and image.width != image.height:
        raise links.fail(encode, "crop must be center for a picture that is not square", "crop")
    # without noise the level is not given: image variations take none
    level = {"noise_level": round(MOST_NOISE * noise)} if noise else {}
    return "vary", level, {"image": image}
