"""Model files as programs wrap them: prefixes around all names, averages alone, weights stored beside their scales."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.bytes.tensor_file import TensorFile, read_tensors

UNET = "model.diffusion_model."
EMA = "model_ema."
# groups of names that hold a whole model; where a file has several, the first one is used
GROUPS = (
    *("state_dict.", "model_state_dict.", "model.", "module.", "unet.", "vae.", "model_ema."),
    *("ema_state_dict.", "ema_model.", "ema.", "params_ema.", "params."),  # of upscalers, averages are meant
)
LCM = ("time_embed.cond_proj.", "time_cond_proj.")  # another name of the projection, and ours
PARTS = {"unet.", "vae."}  # of these a file with both has two networks
# names that begin with one of GROUPS and are wrapped in nothing
PLAIN = re.compile(
    r"(model|model_ema)\.(diffusion_model|\d+\.|decay$|num_updates$|"
    r"(betas|logvar|lvlb_weights|alphas_cumprod|sqrt_|log_|posterior_))"
)
INSIDE = re.compile(r"(?:(?<=^)|(?<=\.))(?:_orig_mod|module)\.")  # of torch.compile and DataParallel
ADAPTER = re.compile(r"lora|hada|lokr|\.oft_|to_k_ip|image_proj")
# a U-Net's names without dots, as its averages have them
WORD = re.compile(
    r"diffusion_model|(?:input|output|middle|transformer)_blocks?|(?:in|out|emb)_layers|time_embed|label_emb|"
    r"skip_connection|cond_proj|proj_(?:in|out)|proj|attn[12]|norm[123]?|to_(?:q|k|v|out)|ff|net|op|conv|qkv|out|"
    r"weight|bias|\d+"
)
SCALES = {
    "weight_scale": "weight",
    "scale_weight": "weight",
    "weight_scale_inv": None,
    "weight_scale_2": None,
}
# scales of activations, and marks of the format: weights don't depend on them
MARKS = re.compile(r"(?:.*\.)?(?:scaled_fp8|scale_input|input_scale|comfy_quant)$")
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")


def read_model_file(path: Path) -> TensorFile:
    """Open a model's file, with its tensors unwrapped and multiplied by their scales. Raises ModelFileError."""
    file = read_tensors(path)
    try:
        return replace(file, tensors=plain_tensors(file.tensors))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names without wrappers, and multiplied by the scales stored beside them."""
    if any(ADAPTER.search(name) for name in tensors):
        return dict(tensors)
    plain = with_averages(scaled(unwrapped(tensors)))
    return {name.replace(*LCM): value for name, value in plain.items()}


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without prefixes that all names share, such as of {"model": ...}, DataParallel or torch.compile."""
    named = dict(tensors)
    while True:
        inner = {INSIDE.sub("", name): value for name, value in named.items()}
        if len(inner) < len(named):
            raise ModelFileError("two tensors have the same name but for module. or _orig_mod. in it")
        named = inner
        wide = {name: value for name, value in named.items() if value.numel() > 1}
        groups = {group_of(name) for name in wide or named}
        if not groups or None in groups or (len(groups) > 1 and groups & PARTS):
            return named
        first = next(group for group in GROUPS if group in groups)
        named = {name[len(first) :]: value for name, value in named.items() if name.startswith(first)}


def group_of(name: str) -> str | None:
    """The group, of GROUPS, that a name begins with; None for a name that is not wrapped."""
    return None if PLAIN.match(name) else next((group for group in GROUPS if name.startswith(group)), None)


def lone_averages(tensors: Mapping[str, object]) -> list[str]:
    """Names of the U-Net's averages in a file that has no other weights of the U-Net."""
    alone = not any(name.startswith(UNET) for name in tensors)
    return [name for name in tensors if alone and name.startswith(f"{EMA}diffusion_model")]


def with_averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the U-Net's averages under the U-Net's own names, where a file has averages alone."""
    averages = lone_averages(tensors)
    renamed = {name: UNET.removesuffix("diffusion_model.") + dotted(name[len(EMA) :]) for name in averages}
    return {renamed.get(name, name): value for name, value in tensors.items()}


def dotted(name: str) -> str:
    """A U-Net's name with its dots. Raises ModelFileError where it has a part that no U-Net has."""
    flat = name.replace(".", "")
    words = WORD.findall(flat)
    if "".join(words) != flat:
        raise ModelFileError(f"{EMA}{name} is not the name of an average of a U-Net's tensor")
    parts: list[str] = []
    for word in words:
        two = word.isdecimal() and bool(parts) and parts[-1] in ("input_blocks", "output_blocks", "label_emb")
        parts += [word[:-1], word[-1]] if two and len(word) > 1 else [word]
    return ".".join(parts)


def scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights multiplied by the scales stored beside them, in float32; scales and marks of the format are left out."""
    plain = dict(tensors)
    for name in tensors:
        layer, _, last = name.rpartition(".")
        dot = "." if layer else ""
        weight = f"{layer}{dot}weight"
        if last == "comfy_quant":
            check_format(name, tensors[name])
        if MARKS.match(name):
            del plain[name]
        elif last in SCALES and weight in tensors:
            if SCALES[last] is None:
                raise ModelFileError(
                    f"{name}: scales of blocks are not supported; convert the file to fp16 first"
                )
            plain[weight] = multiplied(weight, tensors[weight], tensors[name])
            del plain[name]
    return plain


def multiplied(name: str, weight: Tensor, scale: Tensor) -> Tensor:
    if not weight.is_floating_point() and weight.dtype != torch.int8:
        kind = str(weight.dtype).removeprefix("torch.")
        raise ModelFileError(f"{name} is packed in {kind}; of scaled weights fp8 and int8 are supported")
    if not scale.is_floating_point() or not torch.isfinite(scale.float()).all():
        raise ModelFileError(f"the scale of {name} holds values that are not finite")
    rows = weight.shape[0] if weight.ndim else 1
    if scale.numel() == 1:
        factor = scale.float().reshape(())
    elif scale.numel() == rows and scale.shape[:1] == (rows,):  # one scale for each output channel
        factor = scale.float().reshape(rows, *[1] * (weight.ndim - 1))
    else:
        shapes = f"{tuple(scale.shape)} beside a weight of {tuple(weight.shape)}"
        raise ModelFileError(f"the scale of {name} has shape {shapes}; 1 value or {rows} are supported")
    return weight.float() * factor


def check_format(name: str, mark: Tensor) -> None:
    """Check the format that ComfyUI's marker names for a layer; raise ModelFileError for an unsupported one."""
    try:
        said = json.loads(bytes(mark.flatten().to(torch.uint8).tolist()))
        form = said.get("format")
    except (ValueError, AttributeError) as error:
        raise ModelFileError(f"{name} is not a JSON object: {error}") from error
    if form not in FORMATS:
        raise ModelFileError(f"{name}: the format {form!r} is not supported; one of {', '.join(FORMATS)}")
