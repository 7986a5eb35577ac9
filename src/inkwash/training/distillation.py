"""The mathematics of teaching a network to draw in few steps. B batch, C channels, H W latent size.

z = signal * x0 + spread * eps with signal^2 + spread^2 = 1, as networks see it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last


@dataclass(frozen=True)
class Levels:
    """Noise levels, as they lie beside z: timesteps t (B,), and signal and spread (B, 1, 1, 1)."""

    t: Tensor
    signal: Tensor
    spread: Tensor

    @classmethod
    def at(cls, t: Tensor, schedule: NoiseSchedule) -> "Levels":
        """The levels of integer timesteps t (B,); -1 is a picture without noise."""
        alpha_bar = schedule.alphas_cumprod
        alpha_bar = torch.cat([alpha_bar, torch.ones_like(alpha_bar[:1])]).to(t.device)[t].view(-1, 1, 1, 1)
        return cls(t, alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float())

    def __getitem__(self, rows: Tensor | slice) -> "Levels":
        return Levels(self.t[rows], self.signal[rows], self.spread[rows])


def predicted(prediction: str, out: Tensor, z: Tensor, level: Levels) -> tuple[Tensor, Tensor]:
    """x0 and eps that a network's output at z means. Raises ValueError for a prediction other than eps, v and x0."""
    out, a, b = out.float(), level.signal, level.spread
    if prediction == "v":
        return a * z - b * out, b * z + a * out
    if prediction == "eps":
        return (z - b * out) / a, out
    if prediction == "x0":
        return out, (z - a * out) / b
    raise ValueError(f"prediction {prediction!r} is not one of eps, v, x0, which can be distilled")


def noised(x0: Tensor, eps: Tensor, level: Levels) -> Tensor:
    """z at a level: of a picture and noise, or by DDIM's step from a prediction (Song et al. 2021, equation 12)."""
    return level.signal * x0 + level.spread * eps


def one_step_target(z: Tensor, after: Tensor, level: Levels, then: Levels) -> Tensor:
    """The x0 with which one DDIM step from z at `level` comes to `after` at `then` (Salimans and Ho 2022, algorithm 2)."""
    ratio = then.spread / level.spread
    return (after - ratio * z) / (then.signal - ratio * level.signal)


def own_weight(prediction: str, level: Levels) -> Tensor:
    """The weight (B, 1, 1, 1) by which squared errors of x0 are those of what the network itself predicts."""
    a, b = level.signal, level.spread
    return {"eps": (a / b).square(), "v": b.square().reciprocal(), "x0": torch.ones_like(a)}[prediction]


def boundary(z: Tensor, x0: Tensor, t: Tensor, data_std: float = 0.5, scaling: float = 10.0) -> Tensor:
    """x0 (B, C, H, W) made to be z at t = 0 (Luo et al. 2023, section 4.2, with its published constants)."""
    scaled = (scaling * t.double()).view(-1, 1, 1, 1)
    total = scaled.square() + data_std**2
    return (data_std**2 / total).float() * z + (scaled / total.sqrt()).float() * x0


def frozen_copy(unet: UNet) -> UNet:
    """A copy of the network that does not learn."""
    made = UNet(unet.config).to(next(unet.parameters()))
    made.load_state_dict(unet.state_dict())
    return channels_last(made).requires_grad_(False).eval()
