"""Few-step students that are judged by a critic, and the table of all kinds. B batch, C channels, H W latent size."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.models.unet import UNet
from inkwash.training.distillation import Levels, noised, own_weight
from inkwash.training.objectives import hinge_loss
from inkwash.training.sources import Batch
from inkwash.training.tasks.denoising import computing
from inkwash.training.tasks.distillation import (
    Consistency,
    Distillation,
    Drawn,
    Guidance,
    Losses,
    Progressive,
)


class Heads(nn.Module):
    """Real or made, from the maps of a U-Net's encoder: one small head for each (Sauer et al. 2024, section 3)."""

    def __init__(self, unet: UNet, width: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1), nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 1, 1)
            )
            for channels in [*unet.skips, unet.skips[-1]]
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Scores (B, K) of K places in all maps."""
        scores = [head(some.float()).flatten(1) for head, some in zip(self.heads, maps, strict=True)]
        return torch.cat(scores, dim=1)


def encoder_maps(
    unet: UNet, x: Tensor, t: Tensor, context: Any = None, vector: Tensor | None = None
) -> list[Tensor]:
    """Outputs of a U-Net's input blocks, and of the middle one."""
    emb, context = unet.embed(x, t, context, vector)
    maps = []
    for block in (*unet.input_blocks, unet.middle_block):
        x = block(x, emb, context)
        maps.append(x)
    return maps


class Adversarial(Distillation):
    """Pictures that a discriminator takes for real, near to the teacher's (Sauer et al. 2023).

    The discriminator sees what the teacher's own encoder makes of noised latents, as in the later work of 2024.
    """

    preset = "turbo"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            heads = Heads(self.teacher).to(next(self.teacher.parameters()).device)
        self.heads, self.modules = heads, dict(self.modules) | {"discriminator": heads}

    def lesson(self, step: int, drawn: Drawn) -> Losses:
        batch, scale = drawn.batch, self.scales(drawn)
        level = self.student_levels((drawn.uniform() * self.config.draw_steps).long() + 1)
        told = self.told(batch, scale)
        x0, _ = self.x0_eps(self.unet, noised(batch.latent, drawn.noise(), level), level, told)
        other = self.any_level(drawn)
        taught, _ = self.guided(noised(x0.detach(), drawn.noise(), other), other, batch, scale)
        # c(t) of section 3.3, alpha_t
        error = self.objective.mean((x0 - taught) * other.signal.sqrt(), None)
        seen, noise = self.any_level(drawn), drawn.noise()
        fooled = -self.scores(noised(x0, noise, seen), seen, batch).mean()
        loss = fooled + self.config.distance_weight * error.mean()
        yield self.trainable.name, loss, {"error": error.mean().item(), "fooled": fooled.item()}
        with torch.no_grad():
            views = [noised(some, noise, seen) for some in (batch.latent, x0)]
        real, made = (self.scores(view, seen, batch) for view in views)
        yield "discriminator", hinge_loss(real, made), {}

    def any_level(self, drawn: Drawn) -> Levels:
        return self.levels((drawn.uniform() * len(self.schedule.alphas_cumprod)).long())

    def scores(self, z: Tensor, level: Levels, batch: Batch) -> Tensor:
        """The discriminator's, of noised latents."""
        with computing(z.device, self.precision):
            like = next(self.teacher.parameters()).dtype
            given = {name: some.to(like) for name, some in batch.cond.items()}
            return self.heads(encoder_maps(self.teacher, z.to(like), level.t, **given)).float()


class DistributionMatching(Distillation):
    """Pictures spread as the teacher's are, by the difference of two scores (Yin et al. 2024).

    The student is trained on what its own steps lead to. A critic, which starts as the teacher, learns the score of what
    the student draws, in more steps than the student.
    """

    preset = "dmd2"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.critic = copy.deepcopy(self.teacher).float().requires_grad_(True)
        self.modules = dict(self.modules) | {"critic": self.critic}

    def lesson(self, step: int, drawn: Drawn) -> Losses:
        scale, learns = self.scales(drawn), step % self.config.critic_steps == 0
        told = self.told(drawn.batch, scale)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            x0 = self.simulated(drawn, told)
        level = self.middle_level(drawn)
        if learns:
            yield from self.matched(x0, noised(x0.detach(), drawn.noise(), level), level, drawn.batch, scale)
        made = x0.detach()
        critic, _ = self.x0_eps(self.critic, noised(made, drawn.noise(), level), level, told)
        error = (critic - made).square() * own_weight(self.objective.prediction, level)
        yield "critic", error.mean(), {}

    def matched(self, x0: Tensor, z: Tensor, level: Levels, batch: Batch, scale: Tensor) -> Losses:
        """The student's loss, whose gradient is the difference of the scores (equation 7)."""
        with torch.no_grad():
            real, _ = self.guided(z, level, batch, scale)
            fake, _ = self.x0_eps(self.critic, z, level, self.told(batch, scale))
            size = (x0 - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-4)
            target = x0 - (fake - real) / size
        loss = 0.5 * (x0 - target).square().mean()
        yield self.trainable.name, loss, {"error": (x0 - real).square().mean().item()}

    def simulated(self, drawn: Drawn, told: Mapping[str, Tensor]) -> Tensor:
        """The student's x0 after some of its steps from noise (section 4.5): gradients are the last one's."""
        steps = self.config.draw_steps
        last = int(torch.randint(steps, (), generator=drawn.rng))
        z, k = drawn.noise(), torch.full_like(drawn.batch.latent[:, 0, 0, 0], steps).long()
        for i in range(last + 1):
            level = self.student_levels(k - i)
            with torch.set_grad_enabled(i == last and torch.is_grad_enabled()):
                x0, _ = self.x0_eps(self.unet, z, level, told)
            z = noised(x0.detach(), drawn.noise(), self.student_levels(k - i - 1))
        return x0

    def middle_level(self, drawn: Drawn) -> Levels:
        """A level of neither pictures nor noise alone, t from 0.02 to 0.98 of all."""
        num = len(self.schedule.alphas_cumprod)
        return self.levels(((0.02 + 0.96 * drawn.uniform()) * num).long())


DISTILLATIONS: Mapping[str, type[Distillation]] = {
    "adversarial": Adversarial,
    "consistency": Consistency,
    "dmd": DistributionMatching,
    "guidance": Guidance,
    "progressive": Progressive,
}
