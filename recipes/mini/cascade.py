"""Imagen's kind on `mini`'s world: a network that draws 32 x 32 pixels by `mini`'s text encoder, and one that enlarges them.

B batch, T tokens, D width, S the large side in pixels, s the small one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.pictures import Pictures
from recipes.mini.tasks import Beside, bf16

SCHEDULE = NoiseSchedule.from_betas(cosine_betas())
SMALL, FACTOR = 32, 4
BASE = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=96,
    channel_mult=(1, 2, 2),
    num_res_blocks=2,
    transformer_depth=(0, 1, 1),
    context_dim=256,
    num_heads=None,
    head_dim=32,
    linear_projections=True,
)
# told of the noise on the small picture, which lies beside x enlarged
UPSCALER = UNetConfig(
    in_channels=6,
    out_channels=3,
    channels=32,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    transformer_depth=(0, 0, 0, 1),
    context_dim=256,
    num_heads=None,
    head_dim=32,
    linear_projections=True,
    norm_groups=8,
    level_embedding=True,
)
CONFIGS = {"small": BASE, "large": UPSCALER}
TRAINING = {
    "small": LoopConfig(6_000, **SHORT | {"lr": 5e-4}),
    "large": LoopConfig(4_000, **SHORT | {"lr": 4e-4}),
}
BATCHES = {"small": 512, "large": 96}
# of the noise on small pictures: the highest that is trained, and what is drawn with
MAX_LEVEL, LEVEL = 400, 100
SCALES = {"small": 4.0, "large": 1.0}  # of guidance


@dataclass(frozen=True)
class World:
    """Pictures (N, S, S, 3) and captions on a device, and the schedule beside them."""

    pictures: Tensor
    captions: Captioned
    schedule: NoiseSchedule

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) in [-1, 1], and contexts (B, T, D), one in ten that of the empty text."""
        chosen, rows = self.captions.draw(num, dropout=0.1)
        pixels = self.pictures[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixels, self.captions.contexts[rows]


def world_of(pictures: Pictures, captions: Captioned) -> World:
    """The pictures of the cached latents, in their order."""
    device = captions.means.device
    held = torch.from_numpy(np.asarray(pictures.images)[pictures.captioned]).to(device)
    return World(held, captions, NoiseSchedule(SCHEDULE.alphas_cumprod.to(device)))


def make(stage: str, device: torch.device) -> UNet:
    """The network of a stage, to be trained from nothing."""
    torch.manual_seed(0)
    return channels_last(preserve_variance(UNet(CONFIGS[stage]))).to(device)


def loss(stage: str, unet: UNet, world: World, batch: int) -> Tensor:
    """The error of v, weighed by min(SNR + 1, 5) of x0's, of small pictures or of large ones beside small ones."""
    device = world.pictures.device
    pixels, context = world.draw(batch)
    small = F.avg_pool2d(pixels, FACTOR)
    t = ((torch.arange(batch, device=device) + torch.rand(batch, device=device)) * (1000 / batch)).long()
    x0 = nhwc(small if stage == "small" else pixels)
    network: Callable[..., Tensor] = unet
    if stage == "large":
        level = torch.randint(MAX_LEVEL, (batch,), device=device)
        beside = enlarged(noised(small, torch.randn_like(small), Levels.at(level, world.schedule)))
        network = lambda x, t, **cond: unet(nhwc(torch.cat([x, beside], 1)), t, vector=level, **cond)  # noqa: E731
    with bf16(device):
        error = prediction_error(
            network, x0, torch.randn_like(x0), t, {"context": context}, world.schedule, "v"
        )
    weight = min_snr_weight(world.schedule, t, 5.0, 1.0, "v")
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def enlarged(small: Tensor) -> Tensor:
    return F.interpolate(small, scale_factor=FACTOR, mode="bilinear")


def save(unet: UNet, path: Path) -> None:
    write_tensors(path, {name: value.half().cpu() for name, value in unet.state_dict().items()}, {})


def load(stage: str, path: Path, device: str | torch.device) -> UNet:
    """A stage's network as it was saved."""
    unet = UNet(CONFIGS[stage])
    unet.load_state_dict({name: value.float() for name, value in read_tensors(path).tensors.items()})
    return channels_last(unet).to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- what it draws


@torch.inference_mode()
def draw(
    stages: tuple[UNet, UNet], base: Model, prompts: Sequence[str], steps: int | None = None, num: int = 50
) -> Tensor:
    """Pixels (B, 3, S, S) of prompts, through both stages, seed k for prompt k. base: whose text encoder is read by."""
    small, large = stages
    made = []
    for seeds in torch.arange(len(prompts)).split(num):
        texts = [prompts[int(k)] for k in seeds]
        cond, uncond = ({"context": contexts(base, each)} for each in (texts, [""] * len(texts)))
        first = sampled(small, (3, SMALL, SMALL), seeds.tolist(), cond, uncond, SCALES["small"], steps)
        noise = NoiseSource([int(k) + 2**32 for k in seeds], (3, SMALL, SMALL), first.device)()
        level = torch.full((len(texts),), LEVEL, device=first.device)
        beside = enlarged(noised(first, noise, Levels.at(level, SCHEDULE)))

        def network(
            x: Tensor, t: Tensor, beside: Tensor = beside, level: Tensor = level, **cond: Tensor
        ) -> Tensor:
            return large(nhwc(torch.cat([x, beside], dim=1)), t, vector=level, **cond)

        shape = (3, SMALL * FACTOR, SMALL * FACTOR)
        made.append(sampled(network, shape, seeds.tolist(), cond, uncond, SCALES["large"], steps))
    return torch.cat(made)


def sampled(
    network: Callable[..., Tensor],
    shape: tuple[int, ...],
    seeds: Sequence[int],
    cond: dict[str, Tensor],
    uncond: dict[str, Tensor],
    scale: float,
    steps: int | None,
) -> Tensor:
    """Pixels of one stage, kept to [-1, 1] in every step."""
    D = cfg(clipped(precondition(network, "v", SCHEDULE)), cond, uncond, scale)
    noise = NoiseSource(seeds, shape, cond["context"].device)
    # the cosine schedule ends far beyond where pictures begin to be seen
    whole = SCHEDULES["uniform"](1 + (steps or measures.STEPS), SCHEDULE)
    sigmas = whole[1:] if whole[0] > 200 else whole
    *_, last = SAMPLERS[measures.SAMPLER](D, noise() * sigmas[0].item(), sigmas, noise=noise)
    return last.x.clamp(-1, 1)


def sheet(stages: tuple[UNet, UNet], base: Model, prompts: Sequence[str]) -> Image.Image:
    """Rows: the base's pictures, and the cascade's."""
    rows = [drawn(base, prompts, Beside()), draw(stages, base, prompts)]
    return contact_sheet(to_images(torch.cat(rows)), len(prompts))
