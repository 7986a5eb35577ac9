"""A small ControlNet for `mini` that follows edges: trained with all that it sees on the device, then measured.

N pictures, M texts, B batch, S picture side, C H W a latent's, T tokens, D width.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import safe_open
from torch import Tensor, nn

from inkwash.annotators import ANNOTATORS
from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.files import append_line, write_text
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.unet import UNetConfig
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.model import Model
from inkwash.training.ema import EMA
from inkwash.training.objectives import min_snr_weight, prediction_error
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from recipes.mini.drawing import contexts
from recipes.mini.evaluate import report
from recipes.mini.fast import on_device
from recipes.mini.labels import Labels
from recipes.mini.parts import load_latents, open_base
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.tasks import Choices, bf16, fitting_attention

HINT = "canny"  # of ANNOTATORS, and the control's name
MAX_BYTES = 12_000_000  # of the weights in float16
OUT = SHIPPED.with_name(f"mini-{HINT}")


@dataclass(frozen=True)
class Recipe:
    """How it is trained. minutes: after which it ends, sooner than after so many steps. pictures: at most so many."""

    steps: int = 6_000
    batch: int = 512
    minutes: float = 2.5
    pictures: int | None = None
    lr: float = 5e-4
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    caption_dropout: float = 0.3  # so that edges say what captions do not
    timestep_power: float = 0.6  # 1 is uniform; less draws more of the noisy ones, where shapes are decided
    min_snr_gamma: float = 5.0
    log_every: int = 50

    def lr_at(self, step: int, progress: float) -> float:
        """A warm-up, then half a cosine. progress: of the run, 0 to 1."""
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) * (1 + math.cos(math.pi * progress)) / 2


FULL = Recipe()
REDUCED = replace(FULL, steps=600, batch=16, minutes=60.0, pictures=1500, log_every=10)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Seen:
    """Latents, hints and captions, on the device, from which batches are drawn.

    means, stds: (N, C, H, W). hints: bool (N, 1, S, S). texts: (M, T, D), the first one of the empty text. choices: rows
    of texts for each picture.
    """

    means: Tensor
    stds: Tensor
    hints: Tensor
    texts: Tensor
    choices: Choices

    def batch(self, num: int, dropout: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, C, H, W), hints (B, 3, S, S) and contexts (B, T, D); nothing of it waits for the device."""
        device = self.means.device
        chosen = torch.randint(len(self.means), (num,), generator=rng, device=device)
        noise = torch.randn(num, *self.means.shape[1:], generator=rng, device=device)
        latent = self.means[chosen].float() + self.stds[chosen].float() * noise
        rows = self.choices.pick(chosen, rng) * (torch.rand(num, generator=rng, device=device) >= dropout)
        return latent, as_hint(self.hints[chosen]), self.texts[rows]


def as_hint(edges: Tensor) -> Tensor:
    """Hints (B, 3, S, S) in [0, 1] of edges (B, 1, S, S)."""
    return edges.float().expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def edges_of(pixels: Tensor) -> Tensor:
    """Edges, bool (B, 1, S, S), of pixels (B, 3, S, S) in [-1, 1]."""
    return ANNOTATORS[HINT].draw((pixels.clamp(-1, 1) + 1) / 2) > 0.5


@torch.inference_mode()
def see(labels: Labels, build: Path, limit: int | None, rng: torch.Generator) -> Seen:
    """The labels' pictures and captions as a network sees them, and their edges. limit: at most so many, at random."""
    device = labels.model.device
    rows = torch.randperm(len(labels.records), generator=rng)[:limit]
    hints = torch.cat([edges_of(labels.pixels(some)) for some in track(rows.split(128), "edges")])
    if are_of(labels.model, build / "latents.safetensors"):
        means, stds, texts, choices, _ = load_latents(build)
        means, stds, choices = means[rows], stds[rows], [choices[i] for i in rows.tolist()]
    else:
        means, stds, texts, choices = encoded(labels, rows)
    means, stds, hints, texts = (part.to(device) for part in (means, stds, hints, texts))
    return Seen(means, stds, hints, texts, Choices.of(choices, device))


def are_of(model: Model, latents: Path) -> bool:
    """Whether cached latents are there and of a model's first stage, as their scale tells."""
    if not latents.exists():
        return False
    with safe_open(latents, framework="pt") as file:
        return float(file.metadata()["scale_factor"]) == getattr(
            model.autoencoder.config, "scale_factor", None
        )


def encoded(labels: Labels, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Means, stds, texts and choices of pictures."""
    model = labels.model
    means, stds, texts = [], [], []
    for some in track(rows.split(128), "pictures"):
        with bf16(model.device):
            posterior = model.autoencoder.encode(labels.pixels(some))
        means.append(posterior.mean.bfloat16())
        stds.append(posterior.std.bfloat16())
    captions = [labels.records[i]["captions"] for i in rows.tolist()]
    numbers = {text: k for k, text in enumerate(dict.fromkeys(chain([""], *captions)))}
    known = list(numbers)
    for first in track(range(0, len(known), 256), "captions"):
        with bf16(model.device):
            texts.append(contexts(model, known[first : first + 256]).bfloat16())
    choices = [[numbers[text] for text in own] for own in captions]
    return torch.cat(means), torch.cat(stds), torch.cat(texts), choices


def small_enough(unet: UNetConfig) -> ControlNetConfig:
    """A ControlNet's config of at most MAX_BYTES in float16: with all of the U-Net's attention, that of its middle alone,
    or none; this one however large it is."""
    flat = (0,) * len(unet.transformer_depth)
    whole = replace(unet, transformer_depth_output=None)
    mid = replace(whole, transformer_depth=flat)
    for config in (whole, mid):
        with torch.device("meta"):
            network = ControlNet(ControlNetConfig(config))
        if 2 * num_parameters(network) <= MAX_BYTES:
            return ControlNetConfig(config)
    return ControlNetConfig(replace(mid, transformer_depth_middle=None))


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def loss_of(
    model: Model, control: nn.Module, schedule: NoiseSchedule, seen: Seen, r: Recipe, rng: torch.Generator
) -> Tensor:
    """The loss of a batch, of the U-Net with the control's residuals."""
    device = seen.means.device
    latent, hint, tokens = seen.batch(r.batch, r.caption_dropout, rng)
    u = (torch.arange(r.batch, device=device) + torch.rand(r.batch, generator=rng, device=device)) / r.batch
    t = (u**r.timestep_power * len(schedule.alphas_cumprod)).long()
    noise = torch.randn(latent.shape, generator=rng, device=device)
    latent, noise = (x.contiguous(memory_format=torch.channels_last) for x in (latent, noise))

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return model.unet(x, t, context, control=control(x, t, hint, context))

    with bf16(device), fitting_attention(device):
        error = prediction_error(network, latent, noise, t, {"context": tokens}, schedule, model.prediction)
    weights = min_snr_weight(schedule, t, r.min_snr_gamma, 1.0, model.prediction)
    return (error.square().mean(dim=(1, 2, 3)) * weights).mean()


def fit(model: Model, control: ControlNet, seen: Seen, r: Recipe, log: Path) -> EMA:
    """Train a control in place; returns its average. Raises FloatingPointError where the loss is not finite."""
    device = seen.means.device
    schedule = on_device(model.schedule, device)
    rng = torch.Generator(device).manual_seed(0)
    parameters = list(control.parameters())
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, r.lr, r.betas, weight_decay=r.weight_decay, fused=fused)
    ema, start, losses = EMA(control, r.ema_decay), time.monotonic(), []
    write_text(log, "")

    def note(step: int) -> None:
        """Log the mean loss since the last time; only here is the device waited for."""
        line = {"step": step, "loss": torch.stack(losses).mean().item()}
        if not math.isfinite(line["loss"]):
            raise FloatingPointError(f"the loss is not finite: {line}")
        text = json.dumps(line | {"seconds": round(time.monotonic() - start, 1)})
        append_line(log, text)
        print(text, flush=True)
        losses.clear()

    for step in range(r.steps):
        progress = max(step / r.steps, (time.monotonic() - start) / (60 * r.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = r.lr_at(step, progress)
        loss = loss_of(model, control, schedule, seen, r, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(control, step)
        losses.append(loss.detach())
        if (step + 1) % r.log_every == 0:
            note(step + 1)
    if losses:
        note(step if progress >= 1 else step + 1)
    return ema


def train(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    out: Path = OUT,
    reduced: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    pictures: int | None = None,
    lr: float | None = None,
    device: str = "cpu",
) -> None:
    """Train a ControlNet of edges for `start`, and write it as the folder `out`.

    Without cyclopts: `python -c "from recipes.mini.control import train; train(device='cuda')"`. steps, minutes, batch,
    pictures, lr: in place of the recipe's; the rate falls to 0 at the end of whichever of the first two ends sooner.
    """
    given = {"steps": steps, "minutes": minutes, "batch": batch, "pictures": pictures, "lr": lr}
    r = replace(REDUCED if reduced else FULL, **{name: v for name, v in given.items() if v is not None})
    model = open_base(start, device)
    labels = Labels(build / "data", "train", model)
    torch.manual_seed(0)
    seen = see(labels, build, r.pictures, torch.Generator().manual_seed(0))
    config = small_enough(model.unet.config)
    control = channels_last(ControlNet.start(config, model.unet)).to(device)
    ema = fit(model, control, seen, r, build / HINT / "log.jsonl")
    done = json.loads((build / HINT / "log.jsonl").read_text().splitlines()[-1]) | {
        "batch": r.batch,
        "pictures": len(seen.means),
        "parameters": num_parameters(control),
    }
    tensors = {name: value.half().cpu().contiguous() for name, value in ema.state_dict().items()}
    write_component(Component(config, tensors), out, "diffusers")
    report(build / HINT / "training.json", done)
    write_text(out / "README.md", card(out, start.name, done, {}))
    print(json.dumps(done | {"out": str(out)}))


CARD = """\
# {name}

A ControlNet for [{base}](../{base}/README.md) that follows edges: {millions:.1f} million parameters, float16, {size:.1f} MB,
in diffusers' layout. `--control canny=PICTURE` finds the picture's edges first, unless it is a map of edges already.

```
inkwash generate "a red apple, noto style" --model {base} --control canny=photo.png
```

## Figures

Measured by `python -m recipes.mini evaluate-control`: captions and edges of held-out pictures, the same seeds for both, 20
steps. *Edges*: F1 of the drawn picture's edges and those given, within 2 pixels. *Places*: intersection over union of where
objects are.

| | pictures | edges, without | with | of the real ones | places, without | with | of the real ones |
|---|---|---|---|---|---|---|---|
{rows}
## Training

{step:,} steps of {batch} over {pictures:,} of `{base}`'s training pictures in {seconds:.0f} seconds (`python -m recipes.mini
control`); the U-Net stayed as it is, and the ControlNet began as its first half. Licence and sources are those of `{base}`.
"""


def card(out: Path, base: str, done: dict[str, Any], figures: dict[str, Any]) -> str:
    """The README of the exported folder. figures: of `evaluate_control`, by group; none are left out."""
    size = sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e6
    rows = ""
    for group, found in figures.items():
        overlaps = product(("edge_overlap", "place_overlap"), ("without", "with", "real"))
        cells = " | ".join(f"{found[who][which]:.2f}" for which, who in overlaps)
        rows += f"| {group} | {found['pictures']} | {cells} |\n"
    return CARD.format(
        name=out.name, base=base, size=size, millions=done["parameters"] / 1e6, rows=rows, **done
    )
