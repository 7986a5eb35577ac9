"""Agreement of pictures with texts, by CLIP's two towers. B batch, D width of the shared space."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.metrics.networks import FeatureNetwork, Features, Identity, digest, filled
from inkwash.models.clip import CLIPText, CLIPVision
from inkwash.models.tokenizer import Tokenizer
from inkwash.weights import shapes
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.models.component import KINDS, read_config, under_our_names
from inkwash.weights.names.wrappers import read_model_file

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXTS = 64  # that go through the tower at once
VISION = re.compile(r"vision_model\.|visual_projection\.|visual\.")


@dataclass(frozen=True)
class CLIPJudge:
    """Both towers of a CLIP, and its tokenizer."""

    pictures: FeatureNetwork
    text: CLIPText
    tokenizer: Tokenizer

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts, cut to the tower's length."""
        device = self.text.text_projection.weight.device
        chunks = torch.tensor(self.tokenizer(texts), device=device).split(TEXTS)
        return F.normalize(torch.cat([self.text(tokens)[1].float().cpu() for tokens in chunks]))

    def picture_vectors(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, D) of pixels (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.pictures(pixels).pooled)


def clip_scores(pictures: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) (B,) of unit vectors (B, D) (Hessel et al. 2021, without their factor of 2.5, as is usual now)."""
    return 100 * (pictures * texts).sum(1).clamp_min(0)


def directional_similarity(before: Tensor, after: Tensor, text_before: Tensor, text_after: Tensor) -> Tensor:
    """Cosine (B,) of the change of the picture and that of the text, of unit vectors (B, D) (Gal et al. 2022)."""
    return F.cosine_similarity(after - before, text_after - text_before)


def filled_and_cropped(pixels: Tensor, side: int) -> Tensor:
    """CLIP's own input: the shorter side resized to `side`, the middle, its mean and std."""
    height, width = pixels.shape[2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    cropped = (pixels[:, :, top : top + side, left : left + side] + 1) / 2
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD))
    return (cropped - mean) / std


def clip_judge(path: Path) -> CLIPJudge:
    """CLIP's towers in one file, under transformers' or OpenCLIP's names, or in transformers' folder.

    A file does not say its activation: transformers' names mean OpenAI's, and OpenCLIP's its own. Raises ModelFileError
    where a tower or a projection is missing.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    tensors = {
        k: v for k, v in read_model_file(file).tensors.items() if k not in ("logit_scale", "logit_bias")
    }
    activation = "gelu" if any(name.startswith("visual.") for name in tensors) else "quick_gelu"
    if path.is_dir():
        activation = read_config(path).get("vision_config", {}).get("hidden_act", activation)
    sides = (
        {name: value for name, value in tensors.items() if bool(VISION.match(name)) == seen}
        for seen in (True, False)
    )
    try:
        vision, text = (
            under_our_names(side, KINDS[kind])
            for side, kind in zip(sides, ("image-encoder", "text-encoder"), strict=True)
        )
        vision_config = shapes.clip_vision_config(shapes.of(vision), activation)
        text_config = shapes.clip_text_config(shapes.of(text), activation)
    except ModelFileError as error:
        raise ModelFileError(
            f"{path} is not a CLIP of both towers: {' '.join(str(error).split())[:200]}"
        ) from error
    if vision_config.projection_dim is None or text_config.projection_dim != vision_config.projection_dim:
        raise ModelFileError(f"{path} is not a CLIP: its towers do not share a space")
    side = vision_config.image_size
    pictures = FeatureNetwork(
        Identity("clip", digest(file), f"{side}x{side} bicubic, middle, CLIP's mean and std"),
        filled(CLIPVision(vision_config), vision, path),
        lambda pixels: filled_and_cropped(pixels, side),
        lambda hidden, pooled: Features(pooled),
    )
    own = path.is_dir() and (path / "vocab.json").exists()
    tokenizer = Tokenizer.from_folder(path) if own else Tokenizer.clip()
    return CLIPJudge(pictures, filled(CLIPText(text_config), text, path).requires_grad_(False), tokenizer)


@dataclass(frozen=True)
class AestheticHead:
    """A chain of linear layers over a picture's unit vector, as LAION's aesthetic predictors are."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    hash: str

    def __call__(self, vectors: Tensor) -> Tensor:
        """Scores (B,) of unit vectors (B, D)."""
        for weight, bias in self.layers:
            vectors = F.linear(vectors, weight, bias)
        return vectors[:, 0]


def aesthetic_head(path: Path) -> AestheticHead:
    """Read an aesthetic head: weights and biases, ordered by number. Raises ModelFileError where they form no chain."""
    layers = linear_layers(read_tensors(path).tensors, f"{path} is not an aesthetic head")
    if layers[-1][0].shape[0] != 1:
        raise ModelFileError(
            f"{path} is not an aesthetic head: its layers do not lead from a vector to one number"
        )
    return AestheticHead(layers, digest(path))


def linear_layers(tensors: Mapping[str, Tensor], problem: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """Weights (out, in) and biases (out,), in the order of the numbers in their names, each layer reading the one before.

    Raises ModelFileError, which begins with `problem`, where they make no chain.
    """
    stems = {name.removesuffix("weight") for name in tensors if name.endswith("weight")}
    order = sorted(stems, key=lambda stem: [int(number) for number in re.findall(r"\d+", stem)])
    try:
        layers = tuple((tensors[f"{stem}weight"].float(), tensors[f"{stem}bias"].float()) for stem in order)
    except KeyError as error:
        raise ModelFileError(f"{problem}: there is no {error.args[0]}") from None
    widths = [weight.shape[::-1] for weight, _ in layers if weight.ndim == 2]
    chained = all(out == into for (_, out), (into, _) in pairwise(widths))
    if not widths or len(widths) < len(layers) or not chained:
        raise ModelFileError(f"{problem}: its layers do not lead from a vector to another")
    return layers
