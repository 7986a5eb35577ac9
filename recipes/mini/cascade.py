"""Imagen's kind on `mini`'s world: a network that draws 32 x 32 pixels by `mini`'s text encoder, and one that enlarges them.

The second draws what enlarging by interpolation leaves out (Li et al. 2022, SRDiff), so its errors are as small as that.
Both see patches of pixels as channels (Hoogeboom et al. 2023, section 3.3), and so compute at 16 x 16 and 32 x 32.

B batch, T tokens, D width, S the large side in pixels, s the small one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import clipped, precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule, cosine_betas
from inkwash.explain.tiles import contact_sheet
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.images import to_images
from inkwash.pipeline.model import Model
from inkwash.training.distillation import Levels, noised
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import LoopConfig
from inkwash.training.objectives import min_snr_weight, prediction_error
from inkwash.weights.bytes.tensor_file import read_tensors, write_tensors
from recipes.mini import evaluate as measures
from recipes.mini.drawing import contexts, drawn
from recipes.mini.fast import SHORT, Captioned, on_device
from recipes.mini.parts import as_float16
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import UNET
from recipes.mini.tasks import Beside, bf16

SCHEDULE = NoiseSchedule.from_betas(cosine_betas())
SMALL, FACTOR = 32, 4
# `mini`'s own network, whose pixels are patches of the picture's
BASE = replace(UNET, in_channels=12, out_channels=12)
# inputs: patches of x, a pixel of the small picture beside each as three more channels, and that picture's noise level as
# the vector
UPSCALER = UNetConfig(
    in_channels=48 + 3,
    out_channels=48,
    channels=64,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    transformer_depth=(0, 0, 1),
    context_dim=256,
    num_heads=None,
    head_dim=32,
    linear_projections=True,
    level_embedding=True,
)
CONFIGS = {"small": BASE, "large": UPSCALER}
PATCHES = {"small": 2, "large": FACTOR}  # pixels a side
SIDES = {"small": SMALL, "large": SMALL * FACTOR}
# noise of 48 channels does not pass through a network of 64, so what is left without it is predicted (Li and He 2025)
PREDICTIONS = {"small": "v", "large": "x0"}
TRAINING = {
    "small": LoopConfig(6_000, **SHORT | {"lr": 5e-4}),
    "large": LoopConfig(4_000, **SHORT | {"lr": 4e-4}),
}
BATCHES = {"small": 512, "large": 96}
# of the noise on small pictures: the highest that is trained, and what is drawn with
MAX_LEVEL, LEVEL = 200, 50
# the standard deviation of what is left out by interpolation
LEFT_OUT = 0.125
SCALES = {"small": 4.0, "large": 1.0}  # of guidance
# sampler and steps; without fresh noise the large stage's errors in x0 stay as specks
DRAWN = {"small": (measures.SAMPLER, measures.STEPS), "large": ("euler_ancestral", 8)}


@dataclass(frozen=True)
class World:
    """Pictures (N, S, S, 3) and captions on a device, and the schedule beside them."""

    pictures: Tensor
    captions: Captioned
    schedule: NoiseSchedule

    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1] of pictures."""
        return self.pictures[rows].permute(0, 3, 1, 2).float() / 127.5 - 1

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) in [-1, 1], and contexts (B, T, D), one in ten that of the empty text."""
        chosen, rows = self.captions.draw(num, dropout=0.1)
        return self.pixels(chosen), self.captions.contexts[rows]


def world_of(pictures: Pictures, captions: Captioned) -> World:
    """The pictures of the cached latents, in their order."""
    device = captions.means.device
    held = torch.from_numpy(np.asarray(pictures.images)[pictures.captioned]).to(device)
    return World(held, captions, on_device(SCHEDULE, device))


@torch.no_grad()
def make(stage: str, base: Model, world: World, num: int = 4096) -> UNet:
    """The network of a stage, to be trained: the large one from nothing, the small one from the base's U-Net.

    The small one's patches become what the base sees and back by the best linear maps for `num` pictures.
    """
    torch.manual_seed(0)
    unet = preserve_variance(UNet(CONFIGS[stage]))
    if stage == "small":
        rows, _ = world.captions.draw(num)
        small = F.avg_pool2d(world.pixels(rows), FACTOR)
        patches = F.pixel_unshuffle(small, PATCHES[stage]).transpose(0, 1).flatten(1).T
        latents = world.captions.latents(rows).transpose(0, 1).flatten(1).T
        into, back = (torch.linalg.lstsq(*pair).solution for pair in ((patches, latents), (latents, patches)))
        tensors = dict(base.unet.state_dict())
        first, last = "input_blocks.0.0.weight", "out.2.weight"
        tensors[first] = torch.einsum("oihw,pi->ophw", tensors[first].float(), into)
        tensors[last] = torch.einsum("oihw,op->pihw", tensors[last].float(), back)
        tensors["out.2.bias"] = tensors["out.2.bias"].float() @ back
        unet.load_state_dict(tensors)
    return channels_last(unet).to(world.pictures.device)


def patched(unet: UNet, stage: str) -> Callable[..., Tensor]:
    """The network of pixels (B, 3, S, S) that a stage's U-Net is to patches of them, side by side in channels.

    beside: a small picture (B, 3, s, s), of which the large stage has a pixel for each patch.
    """
    side = PATCHES[stage]

    def network(x: Tensor, t: Tensor, beside: Tensor | None = None, **cond: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, side)
        seen = patches if beside is None else torch.cat([patches, beside], dim=1)
        return F.pixel_shuffle(unet(nhwc(seen), t, **cond), side)

    return network


def loss(stage: str, unet: UNet, world: World, batch: int) -> Tensor:
    """The error of a stage's prediction, of small pictures or of what large ones are beyond small ones, weighed as that of
    x0 by min(SNR + 1, 5)."""
    device = world.pictures.device
    pixels, context = world.draw(batch)
    small = F.avg_pool2d(pixels, FACTOR)
    t = ((torch.arange(batch, device=device) + torch.rand(batch, device=device)) * (1000 / batch)).long()
    x0, cond = small, {"context": context}
    if stage == "large":
        level = torch.randint(MAX_LEVEL, (batch,), device=device)
        seen = noised(small, torch.randn_like(small), Levels.at(level, world.schedule))
        x0, cond = (pixels - enlarged(seen)) / LEFT_OUT, cond | {"beside": seen, "vector": level}
    network, prediction = patched(unet, stage), PREDICTIONS[stage]
    with bf16(device):
        error = prediction_error(network, x0, torch.randn_like(x0), t, cond, world.schedule, prediction)
    weight = min_snr_weight(world.schedule, t, 5.0, 1.0, prediction)
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()


def enlarged(small: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) of small ones (B, 3, s, s) by bicubic interpolation."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic", align_corners=False)


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def save(unet: UNet, path: Path) -> None:
    write_tensors(path, as_float16(unet.state_dict()), {})


def load(stage: str, path: Path, device: str | torch.device) -> UNet:
    """A stage's network as it was saved."""
    unet = UNet(CONFIGS[stage])
    unet.load_state_dict({name: value.float() for name, value in read_tensors(path).tensors.items()})
    return channels_last(unet).to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- what it draws


@torch.inference_mode()
def draw(
    stages: tuple[UNet, UNet | None],
    base: Model,
    prompts: Sequence[str],
    num: int = 50,
) -> Tensor:
    """Pixels (B, 3, S, S) of prompts, through both stages, or enlarged by interpolation where there is only one.

    Prompt k has seed k. base: whose text encoder is read by.
    """
    small, large = stages
    made = []
    for seeds in torch.arange(len(prompts)).split(num):
        texts = [prompts[int(k)] for k in seeds]
        cond, uncond = ({"context": contexts(base, each)} for each in (texts, [""] * len(texts)))
        first = sampled("small", small, seeds.tolist(), cond, uncond).clamp(-1, 1)
        if large is None:
            made.append(enlarged(first).clamp(-1, 1))
            continue
        noise = NoiseSource([int(k) + 2**32 for k in seeds], (3, SMALL, SMALL), first.device)()
        level = torch.full((len(texts),), LEVEL, device=first.device)
        seen = noised(first, noise, Levels.at(level, SCHEDULE))
        beside = {"beside": seen, "vector": level}
        found = sampled("large", large, seeds.tolist(), cond | beside, uncond | beside)
        made.append((enlarged(seen) + LEFT_OUT * found).clamp(-1, 1))
    return torch.cat(made)


def sampled(
    stage: str,
    unet: UNet,
    seeds: Sequence[int],
    cond: dict[str, Tensor],
    uncond: dict[str, Tensor],
) -> Tensor:
    """Pixels (B, 3, s, s) of the small stage, kept to [-1, 1] in every step, or the large stage's differences (B, 3, S, S)
    from enlarged pixels, in units of LEFT_OUT."""
    sampler, steps = DRAWN[stage]
    denoise = precondition(patched(unet, stage), PREDICTIONS[stage], SCHEDULE)
    kept = clipped(denoise) if stage == "small" else denoise
    D, shape = cfg(kept, cond, uncond, SCALES[stage]), (3, SIDES[stage], SIDES[stage])
    noise = NoiseSource(seeds, shape, cond["context"].device)
    # the cosine schedule ends far beyond where pictures begin to be seen
    whole = SCHEDULES["uniform"](1 + steps, SCHEDULE)
    sigmas = whole[1:] if whole[0] > 200 else whole
    *_, last = SAMPLERS[sampler](D, noise() * sigmas[0].item(), sigmas, noise=noise)
    return last.x


def sheet(stages: tuple[UNet, UNet], base: Model, prompts: Sequence[str]) -> Image.Image:
    """Rows: the base's pictures, and the cascade's."""
    rows = [drawn(base, prompts, Beside()), draw(stages, base, prompts)]
    return contact_sheet(to_images(torch.cat(rows)), len(prompts))
