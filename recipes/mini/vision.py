"""A picture tower for the text encoder that a model has, as CLIP's: the other half of a pair whose text side is kept.

N pictures, M texts, B batch, T tokens, D width, S side of what the tower sees.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from inkwash.models.clip import CLIPVision
from inkwash.models.tokenizer import Tokenizer
from inkwash.pipeline.model import Model
from inkwash.training.loop import LoopConfig
from inkwash.training.objectives import contrastive_loss
from recipes.mini import parts
from recipes.mini.classifier import augment
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.pictures import Pictures, load_pictures
from recipes.mini.recipe import VISION
from recipes.mini.tasks import CLIPPair, bf16, on_device

NAME = "vision"  # its folder in the build
TRAINING = LoopConfig(1_500, **SHORT | {"lr": 1e-3, "weight_decay": 0.1, "ema_decay": 0.99})
BATCH = 512


def make_pair(model: Model) -> CLIPPair:
    """The model's text encoder, which does not learn, and a vision tower that does."""
    torch.manual_seed(0)
    text, _ = parts.text_encoder(model)
    pair = CLIPPair(text.requires_grad_(False), CLIPVision(VISION))
    torch.nn.init.normal_(pair.vision.vision_model.embeddings.position_embedding.weight, std=0.02)
    return pair.to(model.device)


@torch.no_grad()
def load_pair(model: Model, build: Path) -> CLIPPair:
    """The model's text encoder, and the tower that was trained beside it."""
    pair = make_pair(model)
    parts.load_average(pair, build / NAME / "state.safetensors", "network")
    return pair.to(model.device)


def shrunk(pictures: Pictures, rows: Tensor, side: int, device: torch.device) -> Pictures:
    """These pictures at the tower's size, in memory on a device."""
    made = []
    for some in track(rows.split(512), "pictures"):
        pixels = F.interpolate(pictures.pixels(some).to(device), size=(side, side), mode="area")
        made.append(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    return replace(pictures, images=torch.cat(made), records=[pictures.records[int(i)] for i in rows])


def seen_pictures(build: Path, pair: CLIPPair, device: torch.device, split: str = "train") -> Pictures:
    """The captioned pictures of a split as the tower sees them, in the order of the cached latents."""
    pictures = load_pictures(build / "data", split)
    return shrunk(pictures, torch.from_numpy(pictures.captioned), pair.vision.config.image_size, device)


def ends_of(tokenizer: Tokenizer, records: list[dict]) -> Tensor:
    """Where the tokens of each caption of pictures end (M,), in the order of the cached contexts."""
    texts, ends = parts.captions_of(records)[0], []
    for start in range(0, len(texts), 4096):
        ids = torch.tensor(tokenizer(texts[start : start + 4096]))
        ends.append((ids == tokenizer.end).int().argmax(dim=1))
    return torch.cat(ends)


def pooled_of(contexts: Tensor, ends: Tensor) -> Tensor:
    """The text encoder's pooled vectors (M, D), which are those of the last tokens of contexts (M, T, D)."""
    return contexts[torch.arange(len(ends), device=contexts.device), ends.to(contexts.device)].float()


def loss(pair: CLIPPair, data: Captioned, pictures: Pictures, pooled: Tensor, batch: int) -> Tensor:
    """The contrastive loss of pictures and captions. pooled: (M, D), of all texts."""
    device = pooled.device
    chosen, rows = data.draw(batch)
    pixels = augment(pictures.pixels(chosen.cpu()).to(device), on_device(torch.default_generator, device))
    with bf16(device):
        images = pair.vision(pixels)[1]
        texts = pair.text_projection(pooled[rows])
    scale = pair.logit_scale.clamp(max=4.6052)
    return contrastive_loss(images.float(), texts.float(), scale, rows[:, None] == rows[None])


@torch.inference_mode()
def vectors_of(pair: CLIPPair, pictures: Pictures, device: torch.device) -> Tensor:
    """The tower's vectors (N, D) of pictures of its size."""
    made = []
    for rows in torch.arange(len(pictures.records)).split(512):
        with bf16(device):
            made.append(pair.vision(pictures.pixels(rows).to(device))[1].float())
    return torch.cat(made)


@torch.inference_mode()
def figures(pair: CLIPPair, model: Model, build: Path) -> dict[str, dict[str, float]]:
    """How often a held-out picture's own caption is the nearest of all, and one of the five nearest; by kind of picture."""
    (text,) = model.text_encoders
    pictures = seen_pictures(build, pair, model.device, "heldout")
    captions = [record["caption"] for record in pictures.records]
    texts = list(dict.fromkeys(captions))
    tokens = torch.tensor(text.tokenizer(texts), device=model.device)
    pooled = torch.cat([text.model(some)[1] for some in tokens.split(256)])
    of_texts = F.normalize(pair.text_projection(pooled.float()), dim=1)
    of_pictures = F.normalize(vectors_of(pair, pictures, model.device), dim=1)
    alike, own = (of_pictures @ of_texts.T).cpu(), torch.tensor([texts.index(each) for each in captions])
    kinds = [record["kind"] for record in pictures.records]
    rows = {kind: torch.tensor([each == kind for each in kinds]) for kind in dict.fromkeys(kinds)}
    rows = {"all": torch.ones(len(kinds), dtype=torch.bool)} | rows
    return {kind: shares(alike[some], own[some]) for kind, some in rows.items()}


def shares(alike: Tensor, own: Tensor) -> dict[str, float]:
    """Shares of rows (N, M) whose own column (N,) is the largest, and one of the five largest."""
    ranks = (alike > alike.gather(1, own[:, None])).sum(dim=1)
    made = {"top1": ranks < 1, "top5": ranks < 5}
    of = {"texts": alike.shape[1], "pictures": len(alike)}
    return {name: round(float(right.float().mean()), 4) for name, right in made.items()} | of
