"""A classifier of noisy latents, for classifier guidance: trained, and its effect measured. B batch, N latents.

It says which of the judge's names a latent x0 + sigma * noise shows, and shares nothing with the judge.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from inkwash.diffusion.guidance import classifier_guidance
from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.nn.blocks import Downsample, ResBlock
from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.training.loop import LoopConfig
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini.classifier import Judge
from recipes.mini.pictures import load_pictures
from recipes.mini.tasks import Losses, bf16, device_of
from recipes.mini.tasks import draw as draw_rows

REDUCED = LoopConfig(1_700, lr=2e-3, decay_steps=500, weight_decay=0.05, ema_decay=0.99, save_every=200)
FULL = LoopConfig(30_000, lr=1e-3, decay_steps=15_000, weight_decay=0.05)
BATCH = 96


class LatentClassifier(nn.Module):
    """The first half of a small U-Net (Dhariwal and Nichol 2021, section 4), without attention."""

    def __init__(self, channels: int, num_names: int, width: int = 64):
        super().__init__()
        emb = 4 * width
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        dims = [width, 2 * width, 4 * width]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResBlock(a, emb, b, 8) for a, b in zip([width, *dims[:-1]], dims, strict=True)
        )
        self.halves = nn.ModuleList(Downsample(dim) for dim in dims[:-1])
        self.last = nn.Sequential(nn.GroupNorm(8, dims[-1]), nn.SiLU())
        self.names = nn.Linear(dims[-1], num_names)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B, K) of x = x0 + sigma * noise, (B, C, H, W); sigma (B,)."""
        level = sigma.double().log().to(x.device, torch.float32)
        emb = self.time_embed(timestep_embedding(250 * level, self.width).to(x.dtype))
        scale = 1 / (1 + sigma.double().square()).sqrt()
        h = self.first(x * scale.to(x.device, x.dtype).view(-1, 1, 1, 1))
        for block, half in zip(self.blocks, [*self.halves, nn.Identity()], strict=True):
            h = half(block(h, emb))
        return self.names(self.last(h).mean(dim=(2, 3)))


class LatentClassifierTask:
    """Cross-entropy of names, at every noise level."""

    def __init__(
        self, model: LatentClassifier, means: Tensor, stds: Tensor, names: Tensor, schedule: NoiseSchedule
    ):
        self.modules: Mapping[str, nn.Module] = {"latent classifier": model}
        self.model, self.means, self.stds, self.names, self.sigmas = (
            model,
            means,
            stds,
            names,
            schedule.sigmas,
        )

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        chosen = draw_rows(torch.arange(len(self.names)), BATCH, rng)
        mean, std = self.means[chosen].float(), self.stds[chosen].float()
        latent = mean + std * torch.randn(mean.shape, generator=rng)
        turned = torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.5  # mirrored: a thing is the same thing
        latent = torch.where(turned, latent.flip(3), latent)
        latent = torch.roll(latent, torch.randint(-1, 2, (2,), generator=rng).tolist(), (2, 3))
        # fewer of the noisiest, which show nothing
        t = (torch.rand(BATCH, generator=rng) ** 1.5 * len(self.sigmas)).long()
        sigma = self.sigmas[t]
        x = latent + sigma.view(-1, 1, 1, 1).float() * torch.randn(mean.shape, generator=rng)
        device = device_of(self.model)
        target = self.names[chosen].to(device)
        x = x.contiguous(memory_format=torch.channels_last).to(device)
        with bf16(device):
            logits = self.model(x, sigma)
        right = (logits.argmax(1) == target).float()
        low = (sigma < 1).to(device)
        yield (
            "latent classifier",
            F.cross_entropy(logits.float(), target, label_smoothing=0.05),
            {
                "top-1": right.mean().item(),
                "top-1 below sigma 1": right[low].mean().item() if low.any() else 0.0,
            },
        )


def make(build: Path, channels: int) -> LatentClassifier:
    return LatentClassifier(channels, len(parts.common_names(build / "data")))


def make_task(build: Path, schedule: NoiseSchedule) -> LatentClassifierTask:
    """Over the cached latents of drawings whose names the judge knows, recoloured ones too."""
    path = build / "latents.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `python -m recipes.mini latents` first")
    with safe_open(path, framework="pt") as file:
        means, stds, rows = (file.get_tensor(name) for name in ("means", "stds", "rows"))
    index = {name: i for i, name in enumerate(parts.common_names(build / "data"))}
    records = load_pictures(build / "data", "train").records
    names = torch.tensor([index.get(records[i].get("slug") or "", -1) for i in rows.tolist()])
    kinds = torch.tensor([records[i]["kind"] in ("single", "recoloured") for i in rows.tolist()])
    kept = kinds & (names >= 0)
    torch.manual_seed(0)
    return LatentClassifierTask(make(build, means.shape[1]), means[kept], stds[kept], names[kept], schedule)


@torch.inference_mode()
def accuracy(
    classifier: LatentClassifier, model: Model, build: Path, sigmas: Sequence[float] = (0.1, 0.5, 1, 2, 5)
) -> dict[str, float]:
    """Share of held-out drawings that it names, at each noise level."""
    heldout, names = load_pictures(build / "data", "heldout"), parts.common_names(build / "data")
    rows = heldout.where(kind="single", common=True)
    wanted = torch.tensor([names.index(heldout.records[i]["slug"]) for i in rows])
    chunks = torch.tensor(rows).split(32)
    latent = torch.cat([model.autoencoder.encode(heldout.pixels(some)).mean for some in chunks])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    made: dict[str, float] = {}
    for sigma in sigmas:
        logits = classifier(latent + sigma * noise, torch.full((len(latent),), sigma))
        made[f"sigma {sigma:g}"] = float((logits.argmax(1) == wanted).float().mean())
    return made


def effect(
    classifier: LatentClassifier,
    model: Model,
    judge: Judge,
    build: Path,
    scale: float,
    prompted: bool,
    pictures: int = 100,
    batch: int = 20,
) -> dict[str, float]:
    """The judge's recognition of pictures that are guided by the classifier alone, at cfg_scale 1.

    The fixed prompts' names are the labels. prompted: the network is given the prompts too; else the empty one.
    """
    asked, names = measures.prompted(build / "data")[:pictures], parts.common_names(build / "data")
    wanted = torch.tensor([names.index(drawing["slug"]) for drawing in asked])
    images = []
    for first in range(0, len(asked), batch):
        some = asked[first : first + batch]
        texts = tuple(measures.caption_of(drawing) if prompted else "" for drawing in some)
        options = {"steps": measures.STEPS, "sampler": measures.SAMPLER, "cfg_scale": 1.0}
        request = TextToImageRequest(prompt=texts, seed=first, batch_size=len(some), **options)
        with torch.inference_mode():
            resolved = resolve(model, request)
            D, sigmas, x, noise = start(model, resolved)
            if scale:
                D = classifier_guidance(D, classifier, wanted[first : first + batch], scale)
            images += draw(model, resolved, (D, sigmas, x, noise))
    styles = torch.tensor([measures.STYLES.index(drawing["style"]) for drawing in asked])
    return measures.recognition(judge, measures.pixels_of(images), wanted, styles) | {"pictures": len(asked)}
