"""DALL-E 2's kind on `mini`'s world: a prior from text to the vector of a picture, and a decoder of such vectors.

N pictures, M texts, B batch, T tokens, D width, C channels, H W latent size, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.explain.tiles import contact_sheet
from inkwash.models import clip
from inkwash.models.clip import CLIPVision
from inkwash.models.conditions import PictureConfig, PictureEmbedder
from inkwash.models.prior import Prior, PriorConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.denoising.vectors import AUGMENTATION, seen_of, with_noise
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
from recipes.mini import vision as eyes
from recipes.mini.classifier import Judge
from recipes.mini.drawing import drawn
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.tasks import Beside, CLIPPair, bf16, fitting_attention

CONFIG = PriorConfig(vector_dim=256, num_heads=4, head_dim=64, num_layers=4)
PRIOR = LoopConfig(6_000, **SHORT | {"lr": 1e-3})
DECODER = LoopConfig(3_000, **SHORT | {"lr": 6e-4})
BATCH = 512  # of the decoder's; the prior's is twice as many
DROPOUT = 0.1  # of the prior's captions, and of the decoder's vectors, for guidance
UNSAID = 0.85  # of the decoder's captions, so that it learns from the vectors
SCALE = 3.0  # of the prior's guidance


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


def make_decoder(unet: UNet, what: Seen) -> UNet:
    """The U-Net with an input for a picture's vector and its noise level, which has no effect yet."""
    torch.manual_seed(0)
    made = UNet(replace(unet.config, vector_dim=2 * what.vectors.shape[1], image_vector=True))
    own = {
        name: torch.zeros_like(value) if name.startswith("label_emb.0.2.") else value
        for name, value in made.state_dict().items()
        if name.startswith("label_emb.")
    }
    made.load_state_dict(unet.state_dict() | own)
    return channels_last(made).to(what.vectors.device)


def decoder_loss(
    unet: UNet, data: Captioned, what: Seen, schedule: NoiseSchedule, prediction: str, batch: int
) -> Tensor:
    """`mini`'s own loss, of a network that sees the picture's vector with some noise, and often no caption."""
    device = what.vectors.device
    pictures, rows = data.draw(batch, UNSAID)
    kept = torch.rand(batch, 1, device=device) >= DROPOUT
    vectors, mean, std = what.vectors[pictures], what.vectors.mean(0), what.vectors.std(0)
    levels = (torch.rand(batch, device=device).pow(4) * len(AUGMENTATION.alphas_cumprod)).long()
    vectors = with_noise(vectors, torch.randn_like(vectors), levels, mean, std)
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    t = (u**0.45 * len(schedule.alphas_cumprod)).long()
    latent = data.latents(pictures)
    cond = {"context": data.contexts[rows], "vector": vectors * kept}
    with bf16(device), fitting_attention(device):
        noise = torch.randn_like(latent)
        error = prediction_error(unet, latent, noise, t, cond, schedule, prediction)
    weight = min_snr_weight(schedule, t, 5.0, 1.0, prediction)
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()


def write_text_prior(prior: Prior, pair: CLIPPair, tokenizer: Tokenizer, folder: Path) -> None:
    """The prior as diffusers' folder, with the text tower that it reads."""
    projection = pair.text_projection.weight
    config = replace(pair.text.config, projection_dim=projection.shape[0])
    tensors = {
        k: v.half().cpu()
        for k, v in (pair.text.state_dict() | {"text_projection.weight": projection}).items()
    }
    made = {name: value.detach().half().cpu() for name, value in prior.state_dict().items()}
    text = TextComponent(config, tensors, tokenizer)
    write_prior(PriorParts(Component(prior.config, made), text, None), folder, parts.MAX_SHARD)


def write_decoder(unet: UNet, vision: CLIPVision, what: Seen, start: Path, folder: Path) -> None:
    """The decoder as a folder of Stable unCLIP's kind, which `inkwash vary` takes; its other parts are `start`'s."""
    stage = {f"vision.{name}": value for name, value in normalised(vision, what.scale).items()}
    stage |= {"mean": what.vectors.mean(0, keepdim=True), "std": what.vectors.std(0, keepdim=True)}
    whole = replace(
        read_checkpoint(start),
        unet=Component(unet.config, {name: value.half().cpu() for name, value in unet.state_dict().items()}),
        texts={},
        cond_stage=Component(
            PictureConfig(vision.config), {name: value.half().cpu() for name, value in stage.items()}
        ),
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
def draw(prior: TextPrior, decoder: Model, prompts: Sequence[str], said: bool = True) -> Tensor:
    """Pixels (N, 3, S, S) of prompts, through the prior and the decoder, seed k for prompt k.

    said: whether the decoder reads the prompts too, as in Stable unCLIP, or sees the prior's vectors alone, as DALL-E 2's.
    """
    made = []
    for seeds in torch.arange(len(prompts)).split(50):
        made.append(prior([prompts[int(k)] for k in seeds], seeds.tolist(), cfg_scale=SCALE))
    return decoded(decoder, torch.cat(made), prompts if said else [""] * len(prompts))


@torch.inference_mode()
def decoded(decoder: Model, vectors: Tensor, prompts: Sequence[str]) -> Tensor:
    """Pixels (N, 3, S, S) of vectors (N, D), beside prompts."""
    cond, none = (
        Beside(vector=each["vector"]) for each in seen_of(decoder, vectors.float(), range(len(prompts)))
    )
    return drawn(decoder, prompts, cond, none)


@torch.inference_mode()
def varied(decoder: Model, pixels: Tensor) -> Tensor:
    """Pixels of other pictures (N, 3, S, S) with what CLIP sees in these, without a word."""
    assert isinstance(decoder.cond_stage, PictureEmbedder)  # as `write_decoder` writes it
    side = decoder.cond_stage.config.vision.image_size
    given = torch.cat([to_clip(image, side) for image in to_images(pixels)])
    vectors = decoder.cond_stage(given.to(decoder.device, decoder.dtype))
    return decoded(decoder, vectors, [""] * len(pixels))


def figures(
    prior: TextPrior,
    decoder: Model,
    base: Model,
    judge: Judge,
    names: Sequence[str],
    data: Path,
    num: int | None = None,
) -> dict[str, dict[str, float]]:
    """Recognition of the fixed prompts by the judge: in the base's pictures, in variations of these, in pictures of prior
    and decoder, and in those where the decoder reads nothing."""
    firsts: list[Tensor] = []

    def own(prompts: Sequence[str]) -> Tensor:
        firsts.append(drawn(base, prompts, Beside()))
        return firsts[0]

    ways = {
        base.name: own,
        f"variations of {base.name}'s": lambda prompts: varied(decoder, firsts[0]),
        "prior and decoder": partial(draw, prior, decoder),
        "prior and decoder, vector alone": partial(draw, prior, decoder, said=False),
    }
    return {name: measures.judged_prompts(judge, names, data, way, num) for name, way in ways.items()}


def sheet(prior: TextPrior, decoder: Model, base: Model, prompts: Sequence[str]) -> Image.Image:
    """Rows: the base's pictures, variations of these, the prior's and decoder's, and those of vectors alone."""
    first = drawn(base, prompts, Beside())
    made = [draw(prior, decoder, prompts, said) for said in (True, False)]
    return contact_sheet(to_images(torch.cat([first, varied(decoder, first), *made])), len(prompts))
