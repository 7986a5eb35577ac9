"""A picture, its depth and a prompt to a picture. B batch, C channels, H W latent size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.images import fitted, nearest_size, to_pixels
from inkwash.pipeline.latents import encode_image
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import DepthRequest

# how networks for depth see pictures by default, in the fields of transformers' preprocessor_config.json
SEEN: dict[str, dict[str, Any]] = {
    "dpt": {
        "size": 384,
        "keep_aspect_ratio": False,
        "ensure_multiple_of": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "depth_anything": {
        "size": 518,
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
}


def depth_to_image(
    model: Model,
    resolved: Resolved[DepthRequest],
    image: Image.Image,
    depth: Image.Image,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Noise a picture and draw it anew by the prompt, with a model that sees its depth beside x.

    depth: of any range, in mode F; larger is nearer.
    """
    resolved = resolved.sized(nearest_size(image, model.autoencoder.config.factor))
    request = resolved.request
    with torch.inference_mode():
        latent = encode_image(model, image, request.size)
        near = nearness(fitted(depth, request.size), (latent.shape[2], latent.shape[3])).to(model.device)
        seen = model.inputs.concat({"depth": near})
        extra_cond = {"concat": seen.expand(request.batch_size, -1, -1, -1)}
        D, sigmas, x, noise = start(
            model,
            resolved,
            sigmas_for_strength(request, request.strength, model.schedule, request.step_rule),
            extra_cond,
        )
        if request.strength < 1:
            x = x + latent
        return draw(model, resolved, (D, sigmas, x, noise), on_step, {"image": image, "depth": depth})


def nearness(depth: Image.Image, size: tuple[int, int]) -> Tensor:
    """A map of depth as the U-Net sees it: (1, 1, H, W) from -1, far, to 1, near; 0 where all is equally far."""
    values = torch.from_numpy(np.array(depth.convert("F")))[None, None]
    made = F.interpolate(values, size=size, mode="bicubic", align_corners=False)
    low, high = made.aminmax()
    return 2 * (made - low) / (high - low) - 1 if high > low else torch.zeros_like(made)


def estimate_depth(image: Image.Image, folder: Path) -> Image.Image:
    """The depth of a picture, larger where nearer, in mode F, by MiDaS's DPT (Ranftl et al. 2021) or Depth Anything.

    folder: of the network as transformers saves it, in safetensors, with its preprocessor_config.json where it has one.
    Raises ModelFileError where there is none, and where transformers, which is in the extra `aux`, is not installed.
    """
    kind = read_config(folder, "config.json").get("model_type")
    if kind not in SEEN:
        raise ModelFileError(
            f"{folder} holds no network for depth: its model_type is {kind}; {', '.join(SEEN)} are"
        )
    try:
        import transformers
    except ImportError as error:
        raise ModelFileError("estimating depth needs transformers: pip install 'inkwash[aux]'") from error
    name = {"dpt": "DPT", "depth_anything": "DepthAnything"}[kind]
    try:
        config = getattr(transformers, f"{name}Config").from_pretrained(folder, local_files_only=True)
        network = (
            getattr(transformers, f"{name}ForDepthEstimation")
            .from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True)
            .eval()
        )
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder} holds no network for depth: {str(error).splitlines()[0]}") from error
    rule = SEEN[kind]
    if kind == "dpt" and isinstance(config.image_size, int):
        rule = rule | {"size": config.image_size}
    with torch.inference_mode():
        made = network(as_seen(image, rule | preprocessing(folder))).predicted_depth[0]
    return Image.fromarray(made.float().numpy()).resize(image.size, Image.Resampling.BICUBIC)


def preprocessing(folder: Path) -> dict[str, Any]:
    """A folder's preprocessing of pictures for its network, in the fields of SEEN."""
    name = "preprocessor_config.json"
    said = read_config(folder, name) if (folder / name).exists() else {}
    return {field: said[field] for field in SEEN["dpt"] if field in said}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A folder's JSON object. Raises ModelFileError where there is none."""
    try:
        data = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{folder} holds no network for depth: there is no {name}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder / name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{folder / name} holds no JSON object")
    return data


def as_seen(image: Image.Image, rule: Mapping[str, Any]) -> Tensor:
    """Pixels (1, 3, H, W) of an RGB picture, in the size and with the mean and std that a rule as of SEEN says."""
    size, m = rule["size"], rule["ensure_multiple_of"]
    size = (size["width"], size["height"]) if isinstance(size, Mapping) else (size, size)
    scales = [wanted / side for wanted, side in zip(size, image.size, strict=True)]
    if rule["keep_aspect_ratio"]:
        scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2
    width, height = (
        max(m, round(scale * side / m) * m) for scale, side in zip(scales, image.size, strict=True)
    )
    pixels = (to_pixels(image.resize((width, height), Image.Resampling.BICUBIC)) + 1) / 2
    mean, std = (torch.tensor(rule[field]).view(1, 3, 1, 1) for field in ("image_mean", "image_std"))
    return (pixels - mean) / std
