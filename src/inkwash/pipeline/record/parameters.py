"""The recipe that a drawn picture holds."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath

from PIL import Image

from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.images import NAME
from inkwash.pipeline.model import Model
from inkwash.pipeline.option import number
from inkwash.pipeline.prior import TextPrior
from inkwash.pipeline.record.a1111 import format_parameters, parse_parameters
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.upscaler import Upscaler
from inkwash.weights.checkpoint import DTYPES

HASHES = {
    "loras": "Lora hashes",
    "hypernetworks": "Hypernet hashes",
    "embeddings": "TI hashes",
}  # A1111's names of files that prompts name


def parameters(model: Model, resolved: Resolved[Request], k: int) -> str:
    """A1111's text of picture k."""
    request = resolved.request
    fields = request.a1111_fields(k) | {
        "Size": f"{request.width or model.default_size}x{request.height or model.default_size}",
        "Model hash": model.hash,
        "Model": model.name,
        "RNG": "CPU",
    }
    if model.refiner:
        fields["Refiner"] = f"{model.refiner.name} [{model.refiner.hash}]"
        if request.refiner_strength is None:
            fields["Refiner switch at"] = number(request.switch_at)
    if prior := prior_of(model, request):
        fields["Prior"] = f"{prior.name or model.name} [{prior.hash}]"
    known = resolved.files[k]
    for i, control in enumerate(request.controls):
        if control.is_reference:
            fields[f"ControlNet {i}"] = control.a1111
            continue
        stem = PurePath(control.file).stem
        named = f"Model: {stem} [{known['controls'][control.name][:8]}]"
        fields[f"ControlNet {i}"] = control.a1111.replace(f"Model: {stem}", named)
    for kind, files in known.items():
        if kind not in HASHES:
            continue
        fields[HASHES[kind]] = ", ".join(f"{name}: {digest}" for name, digest in files.items())
    return format_parameters(request.prompts[k], request.negative_prompts[k], fields)


def recipe(model: Model, resolved: Resolved[Request], k: int, pictures: Mapping[str, Image.Image]) -> str:
    """JSON of all that picture k depends on; the pictures that were given are named, and known by their pixels."""
    request = resolved.request
    about = {"task": request.task, "request": request.model_dump(), "picture": k}
    models = {"model": model} | ({"refiner": model.refiner} if model.refiner else {})
    about |= {role: named(used) for role, used in models.items()} | {"files": resolved.files[k]}
    if prior := prior_of(model, request):
        about["prior"] = {"name": prior.name, "hash": prior.hash}
    pictures = {**pictures, **controls_pictures(request)}
    about |= {"given": {role: identity(image) for role, image in pictures.items()}}
    return json.dumps(about, ensure_ascii=False)


def prior_of(model: Model, request: Request) -> TextPrior | None:
    """The prior that a request was drawn by: that of its model, which acts on text to image alone."""
    return model.prior if isinstance(request, TextToImageRequest) else None


def upscaled_parameters(upscaler: str, image: Image.Image, made: Image.Image) -> str:
    """A1111's text of a picture that was enlarged: what the small one says, and by how much and what."""
    prompt, negative_prompt, fields = parse_parameters(image.info.get("parameters", ""))
    if not fields:
        prompt = negative_prompt = ""
        fields = {"Size": f"{image.width}x{image.height}"}
    fields["Postprocess upscale by"] = number(round(made.width / image.width, 4))
    fields["Postprocess upscaler"] = upscaler
    return format_parameters(prompt, negative_prompt, fields)


def upscaled_recipe(upscaler: Upscaler, request: Request, image: Image.Image) -> str:
    """JSON of all that an enlarged picture depends on, the upscaler in the model's place."""
    dtype = {dtype: name for name, dtype in DTYPES.items()}[upscaler.dtype]
    about = {"task": request.task, "request": request.model_dump(), "picture": 0}
    about |= {"model": {"name": upscaler.name, "hash": upscaler.hash, "dtype": dtype}, "files": {}}
    return json.dumps(about | {"given": {"image": identity(image)}}, ensure_ascii=False)


def controls_pictures(request: Request) -> dict[str, Image.Image]:
    """The pictures of a request's controls, by the roles that recipes give them: control-0, control-0-mask."""
    return {
        f"control-{i}{ending}": picture
        for i, control in enumerate(request.controls)
        for ending, picture in (("", control.image), ("-mask", control.mask))
        if picture is not None
    }


def identity(image: Image.Image) -> dict[str, object]:
    """A picture's name, where it has one, its size and mode, and the sha256 of its pixels, row by row."""
    return {
        "name": image.info.get(NAME),
        "size": list(image.size),
        "mode": image.mode,
        "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
    }


def named(model: Model) -> Mapping[str, object]:
    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(model.dtype, str(model.dtype))
    used = {"name": model.name, "hash": model.hash, "dtype": dtype} | ({"int8": True} if model.int8 else {})
    return used | ({"parts": model.part_hashes} if model.parts else {})
