"""Latents of training pictures, computed once and kept on disk. C channels, H W latent size.

An entry's name is the hash of all that it depends on: the picture's bytes, its placement, and the first stage. Processes
share the folder; a file is whole or not there.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from inkwash.data.buckets import Placement
from inkwash.data.examples import Example
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import FirstStage, Posterior
from inkwash.pipeline.images import to_pixels
from inkwash.weights.bytes.tensor_file import read_tensors, write_tensors


@dataclass(frozen=True)
class View:
    """A view of a picture: scaled, cut to its bucket from (left, top) on, and mirrored or not."""

    placement: Placement
    left: int
    top: int
    flipped: bool = False

    @classmethod
    def of(cls, example: Example, placement: Placement, crop: tuple[float, float], coin: float) -> "View":
        """The view of a picture. crop: where in the room that is left, 0 to 1 each, if its crops are random. coin: 0 to 1,
        below a half is mirrored, if it may be."""
        (width, height), (across, down) = placement.scaled, placement.bucket
        x, y = crop if example.random_crop else (0.5, 0.5)
        left, top = int(x * (width - across) + 0.5), int(y * (height - down) + 0.5)
        return cls(placement, left, top, example.flip and coin < 0.5)

    def apply(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """The picture as it is seen."""
        (across, down), scaled = self.placement.bucket, self.placement.scaled
        image = image if image.size == scaled else image.resize(scaled, resample)
        image = image.crop((self.left, self.top, self.left + across, self.top + down))
        return ImageOps.mirror(image) if self.flipped else image


def read_entry(path: Path) -> Mapping[str, Tensor] | None:
    """The tensors of a cache's entry; None where it is not there or is damaged, and is to be made anew."""
    try:
        return read_tensors(path).tensors
    except ModelFileError:
        return None


class LatentCache:
    """Posteriors of pictures by a first stage, from the folder if they are there. folder: None encodes every time."""

    def __init__(self, autoencoder: FirstStage, folder: Path | None):
        self.autoencoder, self.folder = autoencoder, folder
        self.version = digest_of(autoencoder) if folder else ""

    def posterior(self, example: Example, view: View) -> Posterior:
        """Mean and std (1, C, H, W), float32, of a picture as it is seen. Raises BrokenPicture."""
        if self.folder is None:
            return self.encode(view.apply(example.open()))
        name = hashlib.sha256(f"{example.digest} {view} {self.version}".encode()).hexdigest()[:32]
        path = self.folder / name[:2] / f"{name}.safetensors"
        if tensors := read_entry(path):
            return Posterior(tensors["mean"], tensors["std"])
        made = self.encode(view.apply(example.open()))
        write_tensors(path, {"mean": made.mean, "std": made.std}, {})
        return made

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Posterior:
        """Mean and std of a picture, float32 on the CPU."""
        like = next(self.autoencoder.parameters(), torch.empty(0))
        made = self.autoencoder.encode(to_pixels(image).to(like.device, like.dtype))
        return Posterior(made.mean.float().cpu(), made.std.float().cpu())


def digest_of(network: nn.Module) -> str:
    """A hash of a network's weights and their type."""
    hashed = hashlib.sha256()
    for name, value in network.state_dict().items():
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
