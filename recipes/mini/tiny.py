"""A tiny autoencoder in the place of `mini`'s first stage, distilled of it (TAESD, Bohan 2023). B batch, f factor.

TAESD's network, but half as wide: at its 64 channels it would take 1.6 times as long as `mini`'s own decoder.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

from inkwash.metrics.fidelity import psnr
from inkwash.models.autoencoder import FirstStage
from inkwash.models.perceptual import PerceptualDistance
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import LoopConfig
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from recipes.mini import parts
from recipes.mini.pictures import Pictures
from recipes.mini.tasks import Losses, bf16, crops, device_of, on_device

CONFIG = TinyAutoencoderConfig(channels=32, latent_channels=8)
REDUCED = LoopConfig(2_000, lr=2e-3, decay_steps=1_200, ema_decay=0.99, weight_decay=0.0)
FULL = LoopConfig(40_000, lr=1e-3, decay_steps=20_000, weight_decay=0.0)
BATCH = 12


def make() -> TinyAutoencoder:
    """A tiny autoencoder whose branches start small, so that nine blocks in a row neither fade nor grow."""
    model = preserve_variance(TinyAutoencoder(CONFIG))
    for name, layer in model.named_modules():
        if name.endswith("conv.4") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1 * layer.weight[0].numel() ** -0.5)
    return model


class TinyTask:
    """The decoder learns what the first stage decodes of a latent, the encoder what it encodes of a picture; both L1.

    The decoder has a perceptual distance beside it. Latents are drawn from their posteriors, of random crops.
    """

    def __init__(
        self,
        model: TinyAutoencoder,
        first_stage: FirstStage,
        perceptual: PerceptualDistance,
        pictures: Pictures,
        batch: int,
        perceptual_weight: float = 0.05,
    ):
        self.modules: Mapping[str, nn.Module] = {"tiny": model}
        self.model, self.first_stage, self.perceptual = model, first_stage, perceptual
        self.pictures, self.batch, self.perceptual_weight = pictures, batch, perceptual_weight

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        device = device_of(self.model)
        rng = on_device(rng, device)
        pixels = crops(self.pictures, self.batch, 64, rng)
        with bf16(device):
            with torch.no_grad():
                posterior = self.first_stage.encode(pixels)
                noise = torch.randn(posterior.mean.shape, generator=rng, device=device)
                latent = posterior.mean + posterior.std * noise
                wanted = self.first_stage.decode(latent)
            made, mean = self.model.decode(latent), self.model.encode(pixels).mean
            distance = self.perceptual(made, wanted).mean()
        l1, encoded = (made.float() - wanted).abs().mean(), (mean.float() - posterior.mean).abs().mean()
        loss = l1 + self.perceptual_weight * distance + encoded
        yield "tiny", loss, {"l1": l1.item(), "perceptual": distance.item(), "encoder l1": encoded.item()}


def export(run: Path) -> Path:
    """Write the averaged weights in float16 as a folder that `--part`, and other tools, take; returns it."""
    model = parts.load_average(make(), run / "state.safetensors", "tiny")
    write_component(Component(CONFIG, model.half().state_dict()), run / "vae", "diffusers")
    return run / "vae"


@torch.inference_mode()
def figures(
    model: FirstStage, first_stage: FirstStage, pictures: Pictures, batch: int = 32
) -> dict[str, float]:
    """Mean PSNR of the tiny decoder's pictures to the first stage's of the same latents and to the pictures, beside the
    first stage's own; and of the first stage's pictures of what the tiny encoder makes to those of its own latents."""
    names = ("to_first_stage", "to_pictures", "first_stage_to_pictures", "encoder")
    ratios: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for rows in track(torch.arange(len(pictures.records)).split(batch), "tiny"):
        pixels = pictures.pixels(rows)
        latent = first_stage.encode(pixels).mean
        exact, made = (one.decode(latent).clamp(-1, 1) for one in (first_stage, model))
        again = first_stage.decode(model.encode(pixels).mean).clamp(-1, 1)
        pairs = ((made, exact), (made, pixels), (exact, pixels), (again, exact))
        for name, pair in zip(names, pairs, strict=True):
            ratios[name].append(psnr(*pair))
    means = {f"psnr_{name}": float(torch.cat(values).mean()) for name, values in ratios.items()}
    return means | {"pictures": len(pictures.records)}
