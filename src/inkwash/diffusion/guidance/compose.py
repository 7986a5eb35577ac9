"""Predictions of several conditions as one. B batch, C channels, H W latent size, T tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser


class Predicted(NamedTuple):
    """What is predicted of one x, thrice an x0 (B, C, H, W)."""

    guided: Tensor
    cond: Tensor  # what the prompt alone makes of it
    uncond: Tensor


@dataclass(frozen=True)
class Guided:
    """A Denoiser that is guided, and can give what it is made of.

    What changes the guidance is a map from one to another, as `changed` makes it.
    """

    parts: Callable[[Tensor, Tensor], Predicted]  # of x and sigma
    # the same in as few calls as `guided` needs: with guidance off uncond is not asked for, and is cond
    needed: Callable[[Tensor, Tensor], Predicted]
    cond: Denoiser  # each alone
    uncond: Denoiser

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.needed(x, sigma).guided


def changed(D: Guided, change: Callable[[Tensor, Tensor, Predicted], Tensor]) -> Guided:
    """D with what it predicts by guidance replaced by change(x, sigma, all that it predicts)."""

    def after(parts: Callable[[Tensor, Tensor], Predicted]) -> Callable[[Tensor, Tensor], Predicted]:
        def made(x: Tensor, sigma: Tensor) -> Predicted:
            predicted = parts(x, sigma)
            return predicted._replace(guided=change(x, sigma, predicted))

        return made

    return Guided(after(D.parts), after(D.needed), D.cond, D.uncond)


def cfg(
    denoise: ConditionedDenoiser, cond: Conditioning, uncond: Conditioning, scale: float, batched: bool = True
) -> Guided:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho and Salimans 2022), so 1 is off.

    cond, uncond: of the whole batch. batched: both in one call of twice the batch, where their shapes agree; else
    in two. The numbers are the same up to rounding. Raises ValueError for a scale that is not finite.
    """
    conds, unconds = (
        [dict(zip(all_, rows, strict=True)) for rows in zip(*all_.values(), strict=True)]
        for all_ in (cond, uncond)
    )
    return compose(denoise, [[(one, 1.0)] for one in conds], unconds, scale, batched)


def compose(
    denoise: ConditionedDenoiser,
    conds: Sequence[Sequence[tuple[Conditioning, float]]],
    unconds: Sequence[Conditioning],
    scale: float,
    batched: bool = True,
    perpendicular: bool = False,
) -> Guided:
    """Guidance by several conditions a picture: uncond + scale * sum of weight_i * (cond_i - uncond).

    Source: Liu et al. 2022, equation 11. conds: for each picture of the batch its conditions, without a batch
    axis, and their weights. unconds: one for each picture. batched: what has equal shapes goes through the network
    in one call. perpendicular: of conditions with negative weights only what is perpendicular to the sum of the
    others counts (Perp-Neg, Armandpour et al. 2023, equation 9), so that they can't undo it. Raises ValueError for a
    scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"cfg_scale {scale} is not finite")
    wanted = [(k, cond, weight) for k, parts in enumerate(conds) for cond, weight in parts]
    single = all([weight for _, weight in parts] == [1] for parts in conds)
    rows = [k for k, _, _ in wanted] + list(range(len(unconds)))
    given = [cond for _, cond, _ in wanted] + list(unconds)
    conditional, everything = range(len(wanted)), range(len(given))

    @cache
    def stacked(which: range) -> list[tuple[list[int], Conditioning]]:
        """What of these is called together."""
        groups: dict[tuple, list[int]] = {}
        for i in which:
            shapes = tuple(value.shape for value in given[i].values())
            groups.setdefault((shapes, batched or i < len(wanted)), []).append(i)
        return [
            (some, {key: torch.stack([given[i][key] for i in some]) for key in given[some[0]]})
            for some in groups.values()
        ]

    def predictions(x: Tensor, sigma: Tensor, which: range) -> list[Tensor]:
        sigma = sigma.expand(len(x))
        made: dict[int, Tensor] = {}
        for some, cond in stacked(which):
            at = [rows[i] for i in some]
            made |= zip(some, denoise(x[at], sigma[at], cond), strict=True)
        return [made[i] for i in which]

    def joined(made: Sequence[Tensor], without: Sequence[Tensor], scale: float) -> Tensor:
        total = list(without)
        terms = [(k, weight, made[i] - without[k]) for i, (k, _, weight) in enumerate(wanted)]
        for k, weight, term in perpendiculars(terms) if perpendicular else terms:
            total[k] = total[k] + scale * weight * term
        return torch.stack(total)

    def parts(x: Tensor, sigma: Tensor) -> Predicted:
        made = predictions(x, sigma, everything)
        made, without = made[: len(wanted)], made[len(wanted) :]
        one = torch.stack(made) if single else joined(made, without, 1.0)
        return Predicted(joined(made, without, scale), one, torch.stack(without))

    def cond(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack(predictions(x, sigma, conditional)) if single else parts(x, sigma).cond

    def uncond(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack(predictions(x, sigma, everything[len(wanted) :]))

    return Guided(parts, alone(cond) if single and scale == 1 else parts, cond, uncond)


def alone(D: Denoiser) -> Callable[[Tensor, Tensor], Predicted]:
    """What is predicted where nothing guides."""
    return lambda x, sigma: Predicted(*[D(x, sigma)] * 3)


Term = tuple[int, float, Tensor]  # the picture's place in the batch, the weight, cond - uncond


def perpendiculars(terms: Sequence[Term]) -> list[Term]:
    """The terms, those with negative weights without their part along the sum of their picture's others."""
    along: dict[int, Tensor] = {}
    for k, weight, term in terms:
        if weight > 0:
            along[k] = along.get(k, 0) + weight * term

    def turned(k: int, term: Tensor) -> Tensor:
        square = along[k].square().sum()
        return term - (term * along[k]).sum() / square * along[k] if square > 0 else term

    return [(k, w, turned(k, term) if w < 0 and k in along else term) for k, w, term in terms]


def keep_known(D: Denoiser, latent: Tensor, mask: Tensor, noise: Tensor) -> Denoiser:
    """Inpainting with any network: what is known stays, at every step with the noise that belongs to it.

    latent, noise: (B, C, H, W), the known picture and its noise. mask: 1 where to draw, 0 where it is known,
    anything between; it broadcasts. Source: Lugmayr et al. 2022, equation 8, without resampling.
    """

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.device, x.dtype).expand(len(x)).view(-1, 1, 1, 1)
        return mask * x + (1 - mask) * (latent + level * noise)

    def kept(x0: Tensor) -> Tensor:
        return mask * x0 + (1 - mask) * latent

    def masked(D: Denoiser) -> Denoiser:
        return lambda x, sigma: kept(D(seen(x, sigma), sigma))

    def all_masked(parts: Callable[[Tensor, Tensor], Predicted]) -> Callable[[Tensor, Tensor], Predicted]:
        return lambda x, sigma: Predicted(*map(kept, parts(seen(x, sigma), sigma)))

    if not isinstance(D, Guided):
        return masked(D)
    return Guided(all_masked(D.parts), all_masked(D.needed), masked(D.cond), masked(D.uncond))
