"""Names of the tensors in LoRA files and their kin: what module each changes, and which part of the change it is.

Module names come in several dialects: kohya's (`lora_unet_` and a path with underscores), diffusers' and peft's
(`unet.` and a path), and LyCORIS' own (`lycoris_`). A path of the U-Net is diffusers' or, as SDXL's files have it,
the original one. With underscores in place of dots all of them are one table.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from inkwash.weights.checkpoint import Parts
from inkwash.weights.names.tables import unet_paths


class Target(NamedTuple):
    """A module of a model."""

    part: str  # unet, text_encoder or text_encoder_2
    path: str  # under this library's names


TEXT_PARTS = ("text_encoder", "text_encoder_2")
UNET_PREFIXES = (
    "lora_unet_",
    "oft_unet_",
    "unet_",
    "lycoris_",
    "diffusion_model_",
    "model_diffusion_model_",
    "",
)
UNET_PREFIXES += ("lora_unet_model_diffusion_model_",)
TEXT_PREFIXES = (
    ("lora_te_", "lora_te1_", "lora_te_wrapped_transformer_", "text_encoder_", "text_encoders_clip_l_transformer_",
     "text_encoders_clip_h_transformer_", ""),
    ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_"),
)  # fmt: skip
LONE_CLIP_G = ("text_encoders_clip_g_transformer_", "lora_te2_")  # of a model that has no other text encoder
OLD_TEXT = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}  # diffusers before 0.17

# a tensor's ending -> its name in this library
ENDINGS: Mapping[str, str] = {
    **{
        f"{infix}{theirs}.weight": ours
        for ours, theirs in {"lora_down": "down", "lora_up": "up"}.items()
        for infix in (".lora_", ".lora.", "_lora.", ".lora_linear_layer.")
    },
    **{f".lora_{a}.weight": ours for a, ours in {"A": "lora_down", "B": "lora_up"}.items()},
    **{f".lora_magnitude_vector{ending}": "dora_scale" for ending in ("", ".weight")},
    **{f".{name}": name for name in ("ia3_l", "oft_r", "oft_R", "boft_R", "boft_s")},
    ".oft_R.weight": "oft_R",
    ".lora_mid.weight": "lora_mid",
    **{f".{name}": name for name in (
        "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1",
        "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale", "diff",
        "diff_b", "set_weight", "weight", "on_input")},
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2")},
    ".w_norm": "diff",
    ".b_norm": "diff_b",
}  # fmt: skip
LONGEST_FIRST = sorted(ENDINGS, key=len, reverse=True)
# peft's name of an adapter, which is "default" unless its user gave another one
NAMED_ADAPTER = re.compile(
    r"\.(lora_A|lora_B|lora_magnitude_vector|ia3_l|oft_r|oft_R|boft_R|boft_s)\.(?!weight$)(\w+)(\.weight)?$"
)


def split(key: str) -> tuple[str, str] | None:
    """A module's name with dots as it is in the file, and our name of the tensor; None where the ending says nothing."""
    if match := NAMED_ADAPTER.search(key):
        key = f"{key[: match.start()]}.{match[1]}{match[3] or ''}"
    ending = next((ending for ending in LONGEST_FIRST if key.endswith(ending)), None)
    if ending is None:
        return None
    return key[: -len(ending)].removeprefix("base_model.model.").replace(".processor.", "."), ENDINGS[ending]


def adapter_names(keys: Iterable[str]) -> set[str]:
    """The names that peft gave the adapters of a file; none where it gave none."""
    return {match[2] for key in keys if (match := NAMED_ADAPTER.search(key))}


def targets(parts: Parts) -> dict[str, Target]:
    """Every name that a module with weights has in a file of adapters."""
    found: dict[str, Target] = {}
    for path, theirs in unet_paths(parts.unet).items():
        for name in {path, theirs, theirs.removesuffix(".0") if theirs.endswith("to_out.0") else theirs}:
            found |= {prefix + underscored(name): Target("unet", path) for prefix in UNET_PREFIXES}
    lone = LONE_CLIP_G if len(parts.text_encoders) == 1 else ()
    for part, encoder, prefixes in zip(TEXT_PARTS, parts.text_encoders, TEXT_PREFIXES, strict=False):
        prefixes = (*prefixes, *lone)
        for path in weighted(encoder.model):
            stem, dot, last = path.rpartition(".")
            for name in (path, f"{stem}{dot}{OLD_TEXT.get(last, last)}"):
                for written in {name, name.removeprefix("text_model.")}:
                    found |= {prefix + underscored(written): Target(part, path) for prefix in prefixes}
    return found


def kohya_names(parts: Parts) -> dict[Target, str]:
    """kohya's name of each module that has weights; in SDXL, the U-Net's under their original names."""
    towers = [encoder.model for encoder in parts.text_encoders]
    prefixes = ["lora_te1_", "lora_te2_"] if len(towers) > 1 else ["lora_te_"]
    original = parts.unet.config.vector_dim is not None
    made = {
        Target("unet", path): f"lora_unet_{underscored(path if original else theirs)}"
        for path, theirs in unet_paths(parts.unet).items()
    }
    for part, prefix, tower in zip(TEXT_PARTS, prefixes, towers, strict=False):
        made |= {Target(part, path): prefix + underscored(path) for path in weighted(tower)}
    return made


def networks(parts: Parts) -> Mapping[str, nn.Module]:
    """A model's networks by the parts of targets."""
    texts = zip(TEXT_PARTS, parts.text_encoders, strict=False)  # there may be fewer
    return {"unet": parts.unet} | {part: encoder.model for part, encoder in texts}


def peft_names(parts: Parts) -> dict[Target, str]:
    """diffusers' name of each module that has weights."""
    made = {Target("unet", path): f"unet.{theirs}" for path, theirs in unet_paths(parts.unet).items()}
    for part, network in networks(parts).items():
        if part != "unet":
            made |= {Target(part, path): f"{part}.{path}" for path in weighted(network)}
    return made


def weighted(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if "weight" in module._parameters]


def underscored(name: str) -> str:
    return name.replace(".", "_")
