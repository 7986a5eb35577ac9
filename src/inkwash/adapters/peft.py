"""peft's settings of an adapter: `adapter_config.json` beside a file, or in its metadata as diffusers writes them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkwash.files import ModelFileError

CONFIG = "adapter_config.json"
INSIDE = "lora_adapter_metadata"  # of safetensors' metadata: fields named unet.r, text_encoder.lora_alpha and so on
KINDS = ("LORA", "IA3", "OFT", "BOFT")


@dataclass(frozen=True)
class Settings:
    """Fields by the part of the model that they are for; "" is for all of it."""

    fields: Mapping[str, Mapping[str, Any]]

    @classmethod
    def beside(cls, path: Path, metadata: Mapping[str, Any]) -> "Settings":
        """The settings of a file: those in its metadata, else those beside it. Raises ModelFileError."""
        config = path.with_name(CONFIG)
        if INSIDE in metadata or not path.stem.startswith("adapter_model") or not config.is_file():
            return cls.inside(metadata)
        try:
            fields = json.loads(config.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{config} can't be read: {error}") from error
        return cls({"": checked(fields, str(config))})

    @classmethod
    def inside(cls, metadata: Mapping[str, Any]) -> "Settings":
        """The settings in a file's metadata. Raises ModelFileError."""
        try:
            read = json.loads(metadata.get(INSIDE, "{}"))
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{INSIDE} is not JSON") from error
        if not isinstance(read, dict):
            raise ModelFileError(f"{INSIDE} is not a JSON object")
        fields: dict[str, dict[str, Any]] = {}
        for key, value in read.items():
            part, _, name = key.rpartition(".")
            fields.setdefault(part, {})[name] = value
        return cls({part: checked(own, INSIDE) for part, own in fields.items()})

    def applied(self, tensors: dict[str, Any], part: str, module: str, layer: Any) -> dict[str, Any]:
        """Apply the settings to a module's tensors. module: its name in the file."""
        own = self.fields.get(part, self.fields.get("", {}))
        if "ia3_l" in tensors:
            return ia3(tensors["ia3_l"], layer)
        if "oft_r" in tensors or "oft_R" in tensors:
            return oft(tensors, own)
        if "boft_R" in tensors:
            blocks = tensors["boft_R"]
            scales = tensors.get("boft_s", torch.ones(len(layer.weight)))
            return {"boft_in": 0.5 * (blocks - blocks.mT), "boft_s": scales.flatten()}
        if "lora_down" in tensors and "alpha" not in tensors and "lora_alpha" in own:
            rank = tensors["lora_down"].shape[0]
            alpha = matching(own.get("alpha_pattern") or {}, module, own["lora_alpha"])
            # our scale is alpha / rank, which peft's rank-stabilised one multiplies by the root of the rank
            return tensors | {"alpha": float(alpha) * (rank**0.5 if own.get("use_rslora") else 1)}
        return tensors


def checked(fields: Any, where: str) -> dict[str, Any]:
    """Settings whose kinds are supported. Raises ModelFileError naming the first that is not."""
    if not isinstance(fields, dict):
        raise ModelFileError(f"{where} is not a JSON object")
    kind = fields.get("peft_type") or "LORA"
    if kind not in KINDS:
        raise ModelFileError(f"{where}: peft_type {kind!r} is not one of {', '.join(KINDS)}")
    if fields.get("fan_in_fan_out"):
        raise ModelFileError(
            f"{where}: fan_in_fan_out true is for transposed layers, which these models don't have"
        )
    alphas = {"lora_alpha": fields.get("lora_alpha", 1)}
    alphas |= {f"alpha_pattern.{key}": value for key, value in (fields.get("alpha_pattern") or {}).items()}
    for name, value in alphas.items():
        if type(value) not in (int, float):
            raise ModelFileError(f"{where}: {name} {value!r} is not a number")
    return fields


def matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that fits a module's name as peft compares them, else the default."""
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise ModelFileError(f"alpha_pattern {key!r} is not a pattern: {error}") from error
    return default


def ia3(factors: Tensor, layer: Any) -> dict[str, Any]:
    """peft's (IA)^3, factors themselves, as LyCORIS', which are their differences from 1."""
    flat, (outputs, inputs) = factors.flatten(), layer.weight.shape[:2]
    on_input = factors.shape[0] == 1 and len(flat) == inputs and (factors.ndim == 2 or outputs != inputs)
    if len(flat) != (inputs if on_input else outputs):
        raise ValueError(
            f"ia3_l has {len(flat)} factors; the layer has {outputs} outputs and {inputs} inputs"
        )
    # outputs are scaled with their bias
    bias = (
        {}
        if on_input or layer.bias is None
        else {"diff_b": layer.bias.detach().float().cpu() * (flat.float() - 1)}
    )
    return {"weight": flat - 1, "on_input": on_input} | bias


def oft(tensors: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """peft's OFT: turns of the inputs, as blocks in old files and as the upper halves of skew matrices in new ones."""
    if own.get("coft"):
        raise ModelFileError("coft true is not supported: its blocks are projected while they are used")
    if "oft_r" in tensors:
        return {"oft_in": 0.5 * (tensors["oft_r"] - tensors["oft_r"].mT)}
    halves = tensors["oft_R"]
    width = round((1 + (1 + 8 * halves.shape[-1]) ** 0.5) / 2)
    if width * (width - 1) // 2 != halves.shape[-1]:
        raise ValueError(
            f"oft_R has {halves.shape[-1]} values a block, which is not the upper half of a square"
        )
    skew = halves.new_zeros(len(halves), width, width)
    rows, columns = [
        list(index)
        for index in zip(*((i, j) for i in range(width) for j in range(i + 1, width)), strict=True)
    ]
    skew[:, rows, columns] = halves
    terms = own.get("num_cayley_neumann_terms", 5) if own.get("use_cayley_neumann", True) else None
    return {"oft_in": skew - skew.mT} | ({"terms": terms} if terms else {})
