"""Short trainings on a GPU: all data on the device, half types, and no step that waits for the host. B batch."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.files import append_line
from recipes.mini.parts import Latents
from recipes.mini.tasks import Choices


def on_device(schedule: NoiseSchedule, device: torch.device) -> NoiseSchedule:
    """A schedule whose levels lie beside what they are looked up for."""
    return NoiseSchedule(schedule.alphas_cumprod.to(device))


@dataclass(frozen=True)
class FastConfig:
    """How long a short training takes: so many steps or minutes, whichever is over first; the rate falls to 0 by then.

    The first step, in which torch compiles, is not counted among the minutes.
    """

    num_steps: int
    minutes: float = 2.5
    batch: int = 1024
    lr: float = 3e-4
    warmup_steps: int = 50
    decay_from: float = 0.3  # of the time
    ema_decay: float = 0.995
    max_grad_norm: float = 1.0
    log_every: int = 100
    seed: int = 0


class Captioned:
    """`mini`'s cached latents and captions on a device, drawn as in its training.

    contexts: (M, T, D), the first one that of the empty text. Rows of contexts and pictures are counted as in the cache.
    """

    def __init__(self, cached: Latents, device: torch.device, seed: int = 0):
        means, stds, contexts, choices, weights = cached
        self.means, self.stds, self.contexts = means.to(device), stds.to(device), contexts.to(device)
        self.choices, self.weights = Choices.of(choices, device), weights.to(device)
        self.rng = torch.Generator(device).manual_seed(seed)

    def draw(self, num: int, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Numbers of pictures and of one context for each (num,), that of the empty text as often as `dropout`."""
        pictures = torch.multinomial(self.weights, num, replacement=True, generator=self.rng)
        kept = torch.rand(num, generator=self.rng, device=self.rng.device) >= dropout
        return pictures, self.choices.pick(pictures, self.rng) * kept

    def latents(self, pictures: Tensor) -> Tensor:
        """Latents (num, C, H, W) of pictures, sampled from their posteriors."""
        mean, std = self.means[pictures].float(), self.stds[pictures].float()
        return mean + std * torch.randn_like(std)


def teach(
    module: nn.Module, loss: Callable[[int], Tensor], config: FastConfig, folder: Path
) -> Mapping[str, Tensor]:
    """Minimise what `loss(step)` gives over the module's parameters; the average of its weights is returned.

    Writes `log.jsonl` into the folder. Raises FloatingPointError where a logged loss is not finite.
    """
    torch.manual_seed(config.seed)
    parameters = [p for p in module.parameters() if p.requires_grad]
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    fused = parameters[0].device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, config.lr, (0.9, 0.99), weight_decay=0.0, fused=fused)
    log = folder / "log.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    begun, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        warm = min(1.0, (step + 1) / config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * warm * min(1.0, (1 - done) / (1 - config.decay_from))
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, foreach=True)
        optimizer.step()
        begun = begun if step else time.monotonic()
        step += 1
        share = 1 - min(config.ema_decay, step / (10 + step))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            average, [p.detach() for p in parameters], share
        )
        done = max(step / config.num_steps, (time.monotonic() - begun) / 60 / config.minutes)
        if step % config.log_every == 0 or done >= 1:
            shown = value.item()
            line = json.dumps({"step": step, "loss": shown, "seconds": round(time.monotonic() - begun, 1)})
            append_line(log, line)
            print(line, flush=True)
            if not math.isfinite(shown):
                raise FloatingPointError(f"the loss was not finite at step {step}")
    return dict(module.state_dict()) | dict(zip(names, average, strict=True))
