"""DALL-E 2's kind on `mini`'s world: a prior from text to the vector of a picture, and a decoder of such vectors.

N pictures, M texts, B batch, T tokens, D width, C channels, H W latent size, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule
from inkwash.explain.tiles import contact_sheet
from inkwash.models import clip
from inkwash.models.clip import CLIPVision
from inkwash.models.conditions import PictureConfig, PictureEmbedder
from inkwash.models.prior import Prior, PriorConfig
from inkwash.models.unet import UNet
from inkwash.pipeline.images import to_clip, to_images
from inkwash.pipeline.model import Model
from inkwash.pipeline.prior import TextPrior
from inkwash.training.distillation import Levels, noised
from inkwash.training.loop import LoopConfig
from inkwash.training.objectives import min_snr_weight, prediction_error
from inkwash.weights.checkpoint import Component, TextComponent
from inkwash.weights.models.convert import read_checkpoint
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.prior import PriorParts, write_prior
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini.classifier import Judge
from recipes.mini.drawing import drawn
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.pictures import load_pictures
from recipes.mini.tasks import Beside, CLIPPair, bf16

CONFIG = PriorConfig(vector_dim=256, num_heads=6, head_dim=64, num_layers=6)
PRIOR = LoopConfig(6_000, **SHORT | {"lr": 5e-4})
DECODER = LoopConfig(3_000, **SHORT)
BATCH = 512  # of the decoder's; the prior's is twice as many
DROPOUT = 0.1  # of captions and of vectors, for guidance
SCALE = 3.0  # of guidance, of both


@dataclass(frozen=True)
class Seen:
    """CLIP's outputs for the world: vectors (N, D) of pictures; of texts the pooled vectors (M, D), and which tokens count
    (M, T). scale: by which the pictures' vectors were multiplied, so that their variance is 1."""

    vectors: Tensor
    pooled: Tensor
    mask: Tensor
    scale: float


@torch.inference_mode()
def seen(build: Path, pair: CLIPPair, data: Captioned) -> Seen:
    """CLIP's vectors of all pictures and texts of the cached latents, in their order, on their device."""
    device = data.means.device
    pictures, tokenizer = load_pictures(build / "data", "train"), parts.load_text_encoder(build)[1]
    kept = pictures.captioned
    side, made = pair.vision.config.image_size, []
    for rows in torch.from_numpy(kept).split(512):
        pixels = F.interpolate(pictures.pixels(rows).to(device), size=(side, side), mode="area")
        with bf16(device):
            made.append(pair.vision(pixels)[1].float())
    vectors = torch.cat(made)
    scale = float(1 / vectors.std())
    texts, _ = parts.captions_of([pictures.records[i] for i in kept])
    ends = []
    for start in range(0, len(texts), 4096):
        ids = torch.tensor(tokenizer(texts[start : start + 4096]))
        ends.append((ids == tokenizer.end).int().argmax(dim=1))
    end = torch.cat(ends).to(device)
    pooled = (
        data.contexts[torch.arange(len(end), device=device), end].float()
        @ pair.text_projection.weight.T.float()
    )
    mask = torch.arange(data.contexts.shape[1], device=device) <= end[:, None]
    return Seen(vectors * scale, pooled, mask, scale)


def make_prior(what: Seen) -> Prior:
    """A prior to be trained, with the statistics of its vectors."""
    torch.manual_seed(0)
    prior = Prior(CONFIG)
    for name in ("positional_embedding", "prd_embedding"):
        torch.nn.init.normal_(getattr(prior, name), std=0.02)
    prior.clip_mean.data, prior.clip_std.data = (
        what.vectors.mean(0, keepdim=True),
        what.vectors.std(0, keepdim=True),
    )
    for statistics in (prior.clip_mean, prior.clip_std):
        statistics.requires_grad_(False)
    return prior.to(what.vectors.device)


def prior_loss(prior: Prior, data: Captioned, what: Seen, schedule: NoiseSchedule, batch: int) -> Tensor:
    """The error of the vectors' x0 (Ramesh et al. 2022, equation 2), at stratified levels."""
    device = what.vectors.device
    pictures, rows = data.draw(batch, DROPOUT)
    x0 = prior.scaled(what.vectors[pictures])
    t = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) * (1000 / batch)
    level = Levels.at(t.long(), schedule)
    z = noised(x0[..., None, None], torch.randn_like(x0)[..., None, None], level)[..., 0, 0]
    with bf16(device):
        made = prior(z, t.long(), what.pooled[rows], data.contexts[rows], what.mask[rows])
    return (made.float() - x0).square().mean()


def decoder_loss(
    unet: UNet, data: Captioned, what: Seen, schedule: NoiseSchedule, prediction: str, batch: int
) -> Tensor:
    """`mini`'s own loss, of a network whose context is the vector of the picture, or zeros."""
    device = what.vectors.device
    pictures, _ = data.draw(batch)
    kept = torch.rand(batch, 1, device=device) >= DROPOUT
    context = (what.vectors[pictures] * kept)[:, None]
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    t = (u**0.45 * len(schedule.alphas_cumprod)).long()
    latent = data.latents(pictures)
    with bf16(device):
        noise = torch.randn_like(latent)
        error = prediction_error(unet, latent, noise, t, {"context": context}, schedule, prediction)
    weight = min_snr_weight(schedule, t, 5.0, 1.0, prediction)
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()


def write_text_prior(prior: Prior, pair: CLIPPair, build: Path, folder: Path) -> None:
    """The prior as diffusers' folder, with the text tower that it reads."""
    tower, tokenizer = parts.load_text_encoder(build)
    projection = pair.text_projection.weight
    config = replace(tower.config, projection_dim=projection.shape[0])
    tensors = {
        k: v.half().cpu() for k, v in (tower.state_dict() | {"text_projection.weight": projection}).items()
    }
    made = {name: value.detach().half().cpu() for name, value in prior.state_dict().items()}
    text = TextComponent(config, tensors, tokenizer)
    write_prior(PriorParts(Component(prior.config, made), text, None), folder, parts.MAX_SHARD)


def write_decoder(unet: UNet, vision: CLIPVision, scale: float, start: Path, folder: Path) -> None:
    """The decoder as a folder of image variations, which `inkwash vary` takes; its first stage is `start`'s."""
    stage = PictureConfig(replace(vision.config), noised=False)
    tensors = {f"vision.{name}": value.half().cpu() for name, value in normalised(vision, scale).items()}
    whole = replace(
        read_checkpoint(start),
        unet=Component(unet.config, {name: value.half().cpu() for name, value in unet.state_dict().items()}),
        text=(),
        texts={},
        cond_stage=Component(stage, tensors),
    )
    write_folder(whole, folder, parts.MAX_SHARD)


def normalised(vision: CLIPVision, scale: float) -> dict[str, Tensor]:
    """The tower's tensors for pixels normalised as CLIP's are, where it was trained on pixels in [-1, 1].

    x = 2 (std y + mean) - 1: the factor goes into the patches' weights, the rest, the same for every patch, into their
    positions' vectors. scale: of the vectors that come out.
    """
    tensors = {name: value.detach().clone().float() for name, value in vision.state_dict().items()}
    mean, std = (
        torch.tensor(values, device=next(iter(tensors.values())).device) for values in (clip.MEAN, clip.STD)
    )
    weight, places = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    )
    offset = (tensors[weight].sum(dim=(2, 3)) * (2 * mean - 1)).sum(dim=1)
    tensors[weight] = tensors[weight] * (2 * std).view(1, 3, 1, 1)
    tensors[places][1:] += offset
    tensors["visual_projection.weight"] *= scale
    return tensors


# ---------------------------------------------------------------- what it draws


@torch.inference_mode()
def draw(prior: TextPrior, decoder: Model, prompts: Sequence[str]) -> Tensor:
    """Pixels (B, 3, S, S) of prompts, through the prior and the decoder, seed k for prompt k."""
    made = []
    for seeds in torch.arange(len(prompts)).split(50):
        vectors = prior([prompts[int(k)] for k in seeds], seeds.tolist(), cfg_scale=SCALE)
        made.append(decoded(decoder, vectors, seeds.tolist()))
    return torch.cat(made)


@torch.inference_mode()
def decoded(decoder: Model, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
    """Pixels (B, 3, S, S) of vectors (B, D)."""
    vectors = vectors.to(decoder.device, decoder.dtype)
    cond, uncond = ({"context": context[:, None]} for context in (vectors, torch.zeros_like(vectors)))
    D = cfg(precondition(decoder.network(), decoder.prediction, decoder.schedule), cond, uncond, SCALE)
    side = decoder.default_size // decoder.autoencoder.config.factor
    noise = NoiseSource(seeds, (decoder.autoencoder.config.latent_channels, side, side), decoder.device)
    sigmas = SCHEDULES["uniform"](measures.STEPS, decoder.schedule)
    *_, last = SAMPLERS[measures.SAMPLER](D, noise() * sigmas[0].item(), sigmas, noise=noise)
    return decoder.autoencoder.decode(last.x).clamp(-1, 1)


def figures(
    prior: TextPrior, decoder: Model, base: Model, judge: Judge, names: Sequence[str], data: Path
) -> dict[str, dict[str, float]]:
    """Recognition of the fixed prompts by the judge, in pictures of the prior and decoder and in those of the base."""
    ways = {
        "prior and decoder": partial(draw, prior, decoder),
        base.name: partial(drawn, base, seen=Beside()),
    }
    return {name: measures.judged_prompts(judge, names, data, way) for name, way in ways.items()}


def sheet(prior: TextPrior, decoder: Model, base: Model, prompts: Sequence[str]) -> Image.Image:
    """Rows: the base's pictures, the prior's and decoder's of the same prompts, and variations of the base's."""
    first = drawn(base, prompts, Beside())
    assert isinstance(decoder.cond_stage, PictureEmbedder)  # as `write_decoder` writes it
    side = decoder.cond_stage.config.vision.image_size
    with torch.inference_mode():
        pixels = torch.cat([to_clip(image, side) for image in to_images(first)])
        vectors = decoder.cond_stage(pixels.to(decoder.device, decoder.dtype))
    varied = decoded(decoder, vectors, range(len(prompts)))
    rows = [first, draw(prior, decoder, prompts), varied]
    return contact_sheet(to_images(torch.cat(rows)), len(prompts))
