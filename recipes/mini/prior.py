"""A prior on `mini`'s world, from text to CLIP's vector of a picture (DALL-E 2's kind); `ip_adapter` decodes such vectors.

N pictures, M texts, B batch, T tokens, D width.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.models.prior import Prior, PriorConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.training.distillation import Levels, noised
from inkwash.training.loop import LoopConfig
from inkwash.weights.checkpoint import Component, TextComponent
from inkwash.weights.models.prior import PriorParts, write_prior
from recipes.mini import parts
from recipes.mini import vision as eyes
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.tasks import CLIPPair, bf16

CONFIG = PriorConfig(vector_dim=256, num_heads=4, head_dim=64, num_layers=4)
PRIOR = LoopConfig(6_000, **SHORT | {"lr": 1e-3})
BATCH = 1024
DROPOUT = 0.1  # of captions, for guidance
SCALE = 3.0  # of guidance


@dataclass(frozen=True)
class Seen:
    """CLIP's outputs for the world: vectors (N, D) of pictures; of texts the pooled vectors (M, D), and how many tokens
    each has (M,). scale: by which the pictures' vectors were multiplied, so that their variance is 1."""

    vectors: Tensor
    pooled: Tensor
    lengths: Tensor
    scale: float


@torch.inference_mode()
def seen(build: Path, pair: CLIPPair, tokenizer: Tokenizer, data: Captioned) -> Seen:
    """CLIP's vectors of all pictures and texts of the cached latents, in their order, on their device."""
    device = data.means.device
    pictures = eyes.seen_pictures(build, pair, device)
    vectors = eyes.vectors_of(pair, pictures, device)
    scale = float(1 / vectors.std())
    ends = eyes.ends_of(tokenizer, pictures.records).to(device)
    pooled = pair.text_projection(eyes.pooled_of(data.contexts, ends))
    return Seen(vectors * scale, pooled, ends + 1, scale)


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
    lengths = what.lengths[rows]
    longest = int(lengths.max())  # no token behind it is seen
    mask = torch.arange(longest, device=device) < lengths[:, None]
    with bf16(device):
        made = prior(z, t.long(), what.pooled[rows], data.contexts[rows, :longest], mask)
    return (made.float() - x0).square().mean()


def write_text_prior(prior: Prior, pair: CLIPPair, tokenizer: Tokenizer, folder: Path) -> None:
    """The prior as diffusers' folder, with the text tower that it reads."""
    projection = pair.text_projection.weight
    config = replace(pair.text.config, projection_dim=projection.shape[0])
    tensors = parts.as_float16(pair.text.state_dict() | {"text_projection.weight": projection})
    made = parts.as_float16(prior.state_dict())
    text = TextComponent(config, tensors, tokenizer)
    write_prior(PriorParts(Component(prior.config, made), text, None), folder, parts.MAX_SHARD)
