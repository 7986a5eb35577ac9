"""cloneofsimo's first LoRA files: pairs by the number of their layer, `unet:0:up`, and words such as `<s1>` beside.

The number counts the layers that the trainer replaced, in the order of diffusers' and transformers' modules at that time.
Source: cloneofsimo's lora, whose metadata name the classes that it looked into.
"""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.checkpoint import Parts
from inkwash.weights.names.tables import unet_paths

NUMBERED = re.compile(r"(unet|text_encoder):(\d{1,5}):(up|down)$")
WORD = re.compile(r"<[^<>:]+>$")
IN_ATTENTION = re.compile(
    r"(.*\.transformer_blocks\.\d+)\.(attn1|attn2|ff)\.(?:(to_[qkv])|(to_out)\.0|(net)\.0\.proj)$"
)
WITHIN = ("to_q", "to_k", "to_v", "to_out", "net")
IN_CLIP = re.compile(r"(.*\.layers\.\d+\.self_attn)\.([kvq]_proj|out_proj)$")
CLIP_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")
SECTIONS = ("down_blocks", "up_blocks", "mid_block")  # the middle is made last
# in the trainer's days a block's feed-forward was made before its second attention, and later behind it
ORDERS = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))


def is_numbered(names: Mapping[str, object]) -> bool:
    """Return True if a file names layers by their numbers."""
    return any(NUMBERED.match(name) for name in names)


def named(tensors: Mapping[str, Tensor], parts: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under diffusers' names, and the vectors of words by the words.

    Raises ModelFileError for a number that the model has no layer for, and for shapes that fit no order of the layers.
    """
    layers: dict[str, dict[int, dict[str, Tensor]]] = {}
    words: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := NUMBERED.match(name):
            layers.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            (words if WORD.match(name) else others)[name] = tensor
    for part, numbered in layers.items():
        paths = paths_that_fit(part, numbered, parts)
        for i, pair in numbered.items():
            others |= {f"{part}.{paths[i]}.lora_{side}.weight": tensor for side, tensor in pair.items()}
    return others, words


def paths_that_fit(part: str, numbered: Mapping[int, Mapping[str, Tensor]], parts: Parts) -> list[str]:
    """Diffusers' paths of a part's layers in the order in which all shapes fit."""
    if part == "text_encoder":
        encoder = parts.text_encoders[0].model
        paths = [path for path, _ in encoder.named_modules() if IN_CLIP.match(path)]
        sizes = {path: tuple(encoder.get_parameter(f"{path}.weight").shape) for path in paths}
        candidates = [sorted(sizes, key=clip_place)]
    else:
        ours = unet_paths(parts.unet)
        sizes = {
            theirs: tuple(parts.unet.get_parameter(f"{path}.weight").shape)
            for path, theirs in ours.items()
            if IN_ATTENTION.match(theirs)
        }
        candidates = [
            sorted(sizes, key=lambda path, order=order: unet_place(path, order)) for order in ORDERS
        ]
    most = max(numbered)
    if most >= len(sizes):
        raise ModelFileError(
            f"{part}:{most} is beyond the {len(sizes)} attention layers of the model's {part}"
        )
    for paths in candidates:
        if all(fits(pair, sizes[paths[i]]) for i, pair in numbered.items()):
            return paths
    raise ModelFileError(
        f"the shapes of {part}:0 to {part}:{most} are those of no order of the model's layers"
    )


def fits(pair: Mapping[str, Tensor], size: tuple[int, ...]) -> bool:
    """Return True if a pair up (out, r), down (r, in) fits a weight of size (out, in)."""
    return set(pair) == {"up", "down"} and (pair["up"].shape[0], pair["down"].shape[-1]) == (
        size[0],
        size[1],
    )


def unet_place(path: str, order: tuple[str, ...]) -> tuple[Any, ...]:
    """Sort key of a layer: its position in diffusers' U-Net."""
    match = IN_ATTENTION.match(path)
    assert match
    block, module, within = match[1], match[2], next(filter(None, match.groups()[2:]))
    return SECTIONS.index(block.split(".")[0]), natural(block), order.index(module), WITHIN.index(within)


def clip_place(path: str) -> tuple[Any, ...]:
    """Sort key of a layer: its position in transformers' CLIP."""
    match = IN_CLIP.match(path)
    assert match
    return natural(match[1]), CLIP_ORDER.index(match[2])


def natural(path: str) -> list[tuple[bool, str | int]]:
    """A key that sorts numbers in a path by their value."""
    groups = groupby(path, key=str.isdecimal)
    return [(number, int("".join(text)) if number else "".join(text)) for number, text in groups]
