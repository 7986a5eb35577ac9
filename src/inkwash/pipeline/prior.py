"""From text to the vectors of pictures: a diffusion prior, and what it is sampled by. B batch, E width of CLIP's vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule, cosine_betas
from inkwash.models.clip import CLIPText
from inkwash.models.prior import Prior
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import TextEncoder, build
from inkwash.weights.models.prior import read_prior

SCHEDULE = NoiseSchedule.from_betas(cosine_betas())


@dataclass(frozen=True)
class TextPrior:
    """A prior and the text tower that it reads (Ramesh et al. 2022). bound: of what it predicts; None for none."""

    network: Prior
    text: TextEncoder
    bound: float | None = 5.0

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int = 25,
        cfg_scale: float = 4.0,
        sampler: str = "ddpm",
        schedule: str = "uniform",
    ) -> Tensor:
        """CLIP's vectors (B, E) of pictures of prompts, each by its own seed."""
        device = self.network.clip_mean.device
        denoise = precondition(self.predict, "x0", SCHEDULE)
        guided = cfg(denoise, self.read(prompts), self.read([""] * len(prompts)), cfg_scale)
        bound = math.inf if self.bound is None else self.bound
        # as in the published scheduler, what guidance made is bounded
        D = lambda x, sigma: guided(x, sigma).clamp(-bound, bound)  # noqa: E731
        noise = NoiseSource([mixed(seed, -2) for seed in seeds], (self.network.config.vector_dim,), device)
        sigmas = SCHEDULES[schedule](steps, SCHEDULE)
        *_, last = SAMPLERS[sampler](D, noise() * sigmas[0].item(), sigmas, noise=noise)
        return self.network.unscaled(last.x)

    def predict(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        dtype = self.network.clip_mean.dtype
        return self.network(x.to(dtype), t, **cond).float()

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the network sees of texts, which are cut where they are too long."""
        model, tokenizer = self.text.model, self.text.tokenizer
        assert isinstance(model, CLIPText)  # as `read_prior` opens it
        ids = torch.tensor(tokenizer(prompts), device=self.network.clip_mean.device)
        tokens, pooled = model(ids)
        ends = (ids == tokenizer.end).int().argmax(dim=1, keepdim=True)
        return {
            "tokens": tokens,
            "pooled": pooled,
            "mask": torch.arange(ids.shape[1], device=ids.device) <= ends,
        }


def open_prior(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TextPrior:
    """Open the prior of a folder or a hub id. Raises ModelFileError naming what is missing or does not fit."""
    parts = read_prior(model_path(name))
    text = build(parts.text, device, dtype)
    return TextPrior(build(parts.prior, device, dtype), TextEncoder(text, parts.text.tokenizer), parts.bound)
