"""`mini`'s cached world on a device, and networks that learn one loss on it. C H W a latent's, T tokens, D width."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.training.loop import LoopConfig, train
from recipes.mini.parts import Latents, load_average
from recipes.mini.tasks import Choices, Losses

# the rate falls over most of a short training
SHORT: Any = {"lr": 3e-4, "warmup_steps": 50, "weight_decay": 0.0, "ema_decay": 0.995, "save_every": 200}


def lasting(config: LoopConfig, steps: int | None, lr: float | None = None) -> LoopConfig:
    """The config for so many steps, over the last 70 % of which the rate falls, and with this rate."""
    num = steps or config.num_steps
    return replace(config, num_steps=num, decay_steps=int(0.7 * num), lr=lr or config.lr)


def on_device(schedule: NoiseSchedule, device: torch.device) -> NoiseSchedule:
    """A schedule whose levels lie beside what they are looked up for."""
    return NoiseSchedule(schedule.alphas_cumprod.to(device))


class Captioned:
    """`mini`'s cached latents and captions on a device, drawn as in its training, by torch's own generator.

    contexts: (M, T, D), the first one that of the empty text. Rows of contexts and pictures are counted as in the cache.
    """

    def __init__(self, cached: Latents, device: torch.device):
        means, stds, contexts, choices, weights = cached
        self.means, self.stds, self.contexts = means.to(device), stds.to(device), contexts.to(device)
        self.choices, self.weights = Choices.of(choices, device), weights.to(device)

    def draw(self, num: int, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Numbers of pictures and of one context for each (num,), that of the empty text as often as `dropout`."""
        pictures = torch.multinomial(self.weights, num, replacement=True)
        kept = torch.rand(num, device=pictures.device) >= dropout
        return pictures, self.choices.pick(pictures) * kept

    def latents(self, pictures: Tensor) -> Tensor:
        """Latents (num, C, H, W) of pictures, sampled from their posteriors, channels last in memory."""
        mean, std = self.means[pictures].float(), self.stds[pictures].float()
        return (mean + std * torch.randn_like(std)).contiguous(memory_format=torch.channels_last)


class OneLoss:
    """A training task of one module and one loss, which draws from torch's own generator. kept: saved beside the module."""

    def __init__(self, module: nn.Module, loss: Callable[[int], Tensor], kept: Mapping[str, nn.Module]):
        self.modules: Mapping[str, nn.Module] = {"network": module, **kept}
        self.loss = loss

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        torch.manual_seed(rng.initial_seed())  # so that a training which was stopped goes on as if it was not
        yield "network", self.loss(step), {}


def teach(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    config: LoopConfig,
    folder: Path,
    minutes: float = math.inf,
    kept: Mapping[str, nn.Module] | None = None,
) -> None:
    """Minimise `loss(step)` over the module's parameters, and leave it with the average of its weights.

    It goes on from what is saved in the folder. kept: modules of the loss that are saved beside it.
    """
    train(OneLoss(module, loss, kept or {}), config, folder, minutes)
    load_average(module, folder / "state.safetensors", "network")
