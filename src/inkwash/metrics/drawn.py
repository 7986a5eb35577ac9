"""The pictures that a protocol asks a model for: drawn once, kept by what was asked. B batch, H W picture size."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from inkwash.metrics.fidelity import codebook_use
from inkwash.metrics.figures import Watch
from inkwash.metrics.pictures import PictureSet
from inkwash.metrics.protocol import Protocol
from inkwash.models.autoencoder import AutoencoderVQ
from inkwash.pipeline.images import fitted, open_picture, to_images
from inkwash.pipeline.latents import decode, encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.record.metadata import save_image
from inkwash.pipeline.request import Request
from inkwash.pipeline.tasks import TASKS

BATCH = 8


def key(model: Model, request: Request, k: int, *given: str) -> str:
    """The name of picture k of a request: other weights, options, prompt, seed or given pictures give another."""
    own = {"prompt": request.prompts[k], "seed": request.seeds[k], "batch_size": 1}
    asked = [
        model.hash,
        sorted(model.part_hashes.items()),
        str(model.dtype),
        request.model_dump(mode="json", exclude_defaults=True) | own,  # so that a new option changes no name
        *given,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]


def draw_missing(
    model: Model,
    protocol: Protocol,
    captions: Sequence[str],
    cfg_scale: float,
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    watch: Watch = lambda num: None,
) -> PictureSet:
    """A picture for each caption in `folder`, those that are not there yet drawn, seed k for caption k.

    shard: (k, n) draws every n-th batch from the k-th on, for n processes on one folder.
    """
    paths: list[Path] = []
    for number, first in enumerate(range(0, len(captions), BATCH)):
        request = protocol.request_of(first, tuple(captions[first : first + BATCH]), cfg_scale)
        wanted = [folder / f"{key(model, request, k)}.png" for k in range(request.batch_size)]
        paths += wanted
        if number % shard[1] != shard[0]:
            continue
        if not all(path.exists() for path in wanted):
            for path, image in zip(wanted, TASKS["text_to_image"].draw(model, request, {}), strict=True):
                save_image(image, path)
        watch(len(wanted))
    size = request.width or model.default_size, request.height or model.default_size
    return PictureSet(f"{model.name} at cfg_scale {cfg_scale:g}", tuple(paths), size)


def hole(size: tuple[int, int], share: float) -> Image.Image:
    """A mask of a size (width, height), white in the middle over a share of each side."""
    mask = Image.new("L", size)
    width, height = (max(1, round(side * share)) for side in size)
    mask.paste(
        255,
        ((size[0] - width) // 2, (size[1] - height) // 2, (size[0] + width) // 2, (size[1] + height) // 2),
    )
    return mask


def fill_holes(
    model: Model,
    protocol: Protocol,
    pictures: PictureSet,
    captions: Sequence[str],
    cfg_scale: float,
    folder: Path,
    watch: Watch = lambda num: None,
) -> PictureSet:
    """Each picture with its middle drawn anew by its caption, seed k for picture k, as far as it is not in `folder`."""
    mask, paths = hole(pictures.size, protocol.hole), []
    for k, (path, caption) in enumerate(zip(pictures.paths, captions, strict=True)):
        request = protocol.request_of(k, (caption,), cfg_scale)
        image = fitted(open_picture(path), pictures.size)
        given = hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
        paths.append(folder / f"{key(model, request, 0, given)}.png")
        if not paths[-1].exists():
            (made,) = TASKS["inpaint"].draw(model, request, {"image": image, "mask": mask})
            save_image(made, paths[-1])
        watch(1)
    return PictureSet(f"{model.name} at cfg_scale {cfg_scale:g}", tuple(paths), pictures.size)


@torch.inference_mode()
def reconstructions(
    model: Model, pictures: PictureSet, folder: Path, watch: Watch = lambda num: None
) -> PictureSet:
    """Each picture through the model's first stage, in `folder`. Raises ValueError for sides that it does not take."""
    factor = model.autoencoder.config.factor
    if any(side % factor for side in pictures.size):
        said = "x".join(map(str, pictures.size))
        raise ValueError(
            f"pictures of {said} are not a multiple of {factor} pixels, which the first stage takes: give --size"
        )
    paths = [folder / f"{k:06}.png" for k in range(len(pictures))]
    rest = iter(paths)
    for pixels in pictures.batches() if not all(path.exists() for path in paths) else ():
        for image, path in zip(to_images(decode(model, encode(model, pixels)).float()), rest, strict=False):
            save_image(image, path)
        watch(len(pixels))
    return PictureSet(f"{model.name}'s first stage", tuple(paths), pictures.size)


@torch.inference_mode()
def codes_of(model: Model, batches: Iterator[Tensor]) -> dict[str, float]:
    """Share of its codebook that a VQ first stage uses on these pictures; nothing of a KL one."""
    stage = model.autoencoder
    if not isinstance(stage, AutoencoderVQ):
        return {}
    codes = [stage.quantize(encode(model, pixels) / stage.config.scale_factor)[1] for pixels in batches]
    return codebook_use(torch.cat([one.flatten() for one in codes]), stage.config.codebook_size or 0)
