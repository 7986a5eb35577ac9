"""A small ControlNet for `mini` that follows edges: trained with all that it sees on the device, then measured.

N pictures, B batch, S picture side.
"""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from inkwash.annotators import ANNOTATORS
from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.files import write_text
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.unet import UNetConfig
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.model import Model
from inkwash.training.loop import LoopConfig
from inkwash.training.objectives import min_snr_weight, prediction_error
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from recipes.mini.evaluate import report
from recipes.mini.fast import Captioned, lasting, on_device, teach
from recipes.mini.parts import as_float16, load_latents, open_base
from recipes.mini.pictures import Pictures, load_pictures
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.tasks import bf16, fitting_attention

HINT = "canny"  # of ANNOTATORS, and the control's name
MAX_BYTES = 12_000_000  # of the weights in float16
OUT = SHIPPED.with_name(f"mini-{HINT}")
TRAINING = LoopConfig(6_000, lr=5e-4, weight_decay=0.01, warmup_steps=100, ema_decay=0.998, save_every=200)
BATCH = 512
CAPTION_DROPOUT = 0.3  # so that edges say what captions do not
TIMESTEP_POWER = 0.6  # 1 is uniform; less draws more of the noisy ones, where shapes are decided


# ---------------------------------------------------------------- training


def as_hint(edges: Tensor) -> Tensor:
    """Hints (B, 3, S, S) in [0, 1] of edges (B, 1, S, S)."""
    return edges.float().expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def edges_of(pixels: Tensor) -> Tensor:
    """Edges, bool (B, 1, S, S), of pixels (B, 3, S, S) in [-1, 1]."""
    return ANNOTATORS[HINT].draw((pixels.clamp(-1, 1) + 1) / 2) > 0.5


@torch.inference_mode()
def all_edges(pictures: Pictures, device: torch.device) -> Tensor:
    """Edges, bool (N, 1, S, S) on a device, of the pictures of the cached latents, in their order."""
    kept = torch.from_numpy(pictures.captioned)
    found = [edges_of(pictures.pixels(rows).to(device)) for rows in track(kept.split(128), "edges")]
    return torch.cat(found)


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
    model: Model, control: nn.Module, schedule: NoiseSchedule, data: Captioned, edges: Tensor, batch: int
) -> Tensor:
    """The loss of a batch, of the U-Net with the control's residuals."""
    device = edges.device
    pictures, rows = data.draw(batch, CAPTION_DROPOUT)
    latent, hint, tokens = data.latents(pictures), as_hint(edges[pictures]), data.contexts[rows]
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    t = (u**TIMESTEP_POWER * len(schedule.alphas_cumprod)).long()

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return model.unet(x, t, context, control=control(x, t, hint, context))

    with bf16(device), fitting_attention(device):
        noise = torch.randn_like(latent)
        error = prediction_error(network, latent, noise, t, {"context": tokens}, schedule, model.prediction)
    weights = min_snr_weight(schedule, t, 5.0, 1.0, model.prediction)
    return (error.square().mean(dim=(1, 2, 3)) * weights).mean()


def train(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    out: Path = OUT,
    steps: int | None = None,
    minutes: float = math.inf,
    batch: int = BATCH,
    lr: float | None = None,
    device: str = "cpu",
) -> None:
    """Train a ControlNet of edges for `start` on the cached latents, and write it as the folder `out`.

    steps, lr: in place of the recipe's. minutes: after which it stops and saves; the same command goes on from there.
    """
    model, config = open_base(start, device), lasting(TRAINING, steps, lr)
    means, stds, contexts, choices, weights = load_latents(build)
    # scenes teach most, whose places captions don't say; single drawings are known by heart
    data = Captioned((means, stds, contexts, choices, torch.ones_like(weights)), model.device)
    edges = all_edges(load_pictures(build / "data", "train"), model.device)
    schedule = on_device(model.schedule, model.device)
    torch.manual_seed(0)
    shape = small_enough(model.unet.config)
    control = channels_last(ControlNet.start(shape, model.unet)).to(device)
    loss = partial(loss_of, model, control, schedule, data, edges, batch)
    teach(control, lambda step: loss(), config, build / HINT, minutes)
    done = {
        "step": json.loads((build / HINT / "log.jsonl").read_text().splitlines()[-1])["step"],
        "batch": batch,
        "pictures": len(edges),
        "parameters": num_parameters(control),
    }
    write_component(Component(shape, as_float16(control.state_dict())), out, "diffusers")
    report(build / HINT / "training.json", done)
    write_text(out / "README.md", card(out, start.name, done, {}))


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

{step:,} steps of {batch} over {pictures:,} of `{base}`'s training pictures (`python -m recipes.mini control`);
the U-Net stayed as it is, and the ControlNet began as its first half. Licence and sources are those of `{base}`.
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
