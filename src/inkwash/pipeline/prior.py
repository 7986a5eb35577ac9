"""A diffusion prior, from text to CLIP's vectors of pictures, and its sampling. B batch, E width of the vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas, ending
from inkwash.models.clip import CLIPText
from inkwash.models.prior import Prior
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import TextEncoder, build
from inkwash.weights.hashes import hash_of
from inkwash.weights.models.prior import read_prior

SCHEDULE = NoiseSchedule.from_betas(cosine_betas())


@dataclass(frozen=True)
class TextPrior:
    """A prior and the text tower that it reads (Ramesh et al. 2022).

    bound: of what it predicts; None for none. spacing: of its timesteps, as of `timesteps`. name: empty of one that its
    decoder's folder brings. files: that its hash is of.
    """

    network: Prior
    text: TextEncoder
    bound: float | None = 5.0
    spacing: str = "linspace"
    name: str = ""
    files: tuple[Path, ...] = ()

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of its weights' sha256."""
        return hash_of(self.files)[:10]

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int = 25,
        cfg_scale: float = 4.0,
        negative_prompts: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> Tensor:
        """CLIP's vectors (B, E) of pictures of prompts, each by its own seed.

        negative_prompts: that guidance starts from, by default empty ones. device: where it computes; its own by default.
        """
        device = device or self.network.clip_mean.device
        denoise = precondition(self.predict, "x0", SCHEDULE)
        cond, uncond = (
            self.read(texts, device) for texts in (prompts, negative_prompts or [""] * len(prompts))
        )
        guided = cfg(denoise, cond, uncond, cfg_scale)
        bound = math.inf if self.bound is None else self.bound
        # as in the published scheduler, what guidance made is bounded
        D = lambda x, sigma: guided(x, sigma).clamp(-bound, bound)  # noqa: E731
        noise = NoiseSource([mixed(seed, -2) for seed in seeds], (self.network.config.vector_dim,), device)
        sigmas = ending(SCHEDULE.sigmas[timesteps(steps, self.spacing)])
        *_, last = SAMPLERS["ddpm"](D, noise() * sigmas[0].item(), sigmas, noise=noise)
        return self.network.unscaled(last.x)

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        dtype = self.network.clip_mean.dtype
        return self.network(x.to(dtype), t, **cond).float()

    def read(self, prompts: Sequence[str], device: torch.device | None = None) -> dict[str, Tensor]:
        """The network's inputs for texts, which are cut where they are too long."""
        model, tokenizer = self.text.model, self.text.tokenizer
        assert isinstance(model, CLIPText)  # as `read_prior` opens it
        ids = torch.tensor(tokenizer(prompts), device=device or self.network.clip_mean.device)
        tokens, pooled = model(ids)
        ends = (ids == tokenizer.end).int().argmax(dim=1, keepdim=True)
        return {
            "tokens": tokens,
            "pooled": pooled,
            "mask": torch.arange(ids.shape[1], device=ids.device) <= ends,
        }


def timesteps(steps: int, spacing: str) -> Tensor:
    """Integer timesteps (n,) of 1000, falling, as the schedulers of published priors space them.

    linspace: from the last to the first, both included; leading: from 0 upward; trailing: from the last downward.
    """
    num = len(SCHEDULE.alphas_cumprod)
    if spacing == "linspace":
        return torch.linspace(num - 1, 0, steps, dtype=torch.float64).round().long()
    if spacing == "leading":
        return torch.arange(steps - 1, -1, -1) * (num // steps)
    return (torch.arange(steps, 0, -1, dtype=torch.float64) * num / steps).round().long() - 1


def open_prior(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    offline: bool = False,
) -> TextPrior:
    """Open the prior of a folder or a hub id. Raises ModelFileError naming what is missing or does not fit."""
    path = model_path(name, offline=offline)
    parts = read_prior(path)
    text = TextEncoder(build(parts.text, device, dtype), parts.text.tokenizer)
    return TextPrior(
        build(parts.prior, device, dtype), text, parts.bound, parts.spacing, named(name, path), parts.files
    )


def named(name: str | Path, path: Path) -> str:
    """A model's name in recipes: its file's or folder's name, and a hub id as it is."""
    if not Path(name).exists() and "/" in str(name):
        return str(name)
    return path.stem if path.is_file() else path.name
