"""Predictions of several conditions as one. B batch, C channels, H W latent size, T tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning, Denoiser

Need = Literal["guided", "cond", "uncond", "all"]  # which of a Prediction's fields are asked for


class Prediction(NamedTuple):
    """Three predictions of one x, each an x0 (B, C, H, W), and the variance that is predicted with them."""

    guided: Tensor
    cond: Tensor  # by the condition alone
    uncond: Tensor
    # by the first condition, as of `precondition`; no channels, (B, 0, H, W), of networks without it
    variance: Tensor

    @classmethod
    def same(cls, made: Tensor, channels: int) -> "Prediction":
        """One prediction in all fields: what guidance that is off predicts. made: of a denoiser, of x with `channels`."""
        x0 = made[:, :channels]
        return cls(x0, x0, x0, made[:, channels:])


@dataclass(frozen=True)
class Guided:
    """A denoiser with guidance, which can also predict by each condition alone.

    predict: of x (B, C, H, W), sigma and a need. "all" fills each field with its own prediction; "cond" and "uncond" fill
    all fields with that one; "guided" makes no more calls of the network than guidance needs, so that at scale 1 all
    fields hold cond. Maps from one Guided to another wrap this one function.
    """

    predict: Callable[[Tensor, Tensor, Need], Prediction]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.predict(x, sigma, "guided").guided


def changed(D: Guided, change: Callable[[Tensor, Tensor, Prediction], Tensor]) -> Guided:
    """D with its guided prediction replaced by change(x, sigma, prediction)."""

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        prediction = D.predict(x, sigma, need)
        if need in ("cond", "uncond"):
            return prediction
        return prediction._replace(guided=change(x, sigma, prediction))

    return Guided(predict)


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
    firsts = [rows.index(k) for k in range(len(unconds))]  # each picture's first condition

    # guidance and condition may ask for different rows; the tensors are stacked once
    stacked = cache(lambda which: stack_alike(given, which, None if batched else len(wanted)))

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

    def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
        channels = x.shape[1]
        if need == "uncond":
            return Prediction.same(torch.stack(predictions(x, sigma, everything[len(wanted) :])), channels)
        if single and (need == "cond" or (need == "guided" and scale == 1)):
            return Prediction.same(torch.stack(predictions(x, sigma, conditional)), channels)
        made = predictions(x, sigma, everything)
        variance = torch.stack([made[i][channels:] for i in firsts])
        x0s = [row[:channels] for row in made]
        rows, without = x0s[: len(wanted)], x0s[len(wanted) :]
        alone = torch.stack(rows) if single else joined(rows, without, 1.0)
        guided = alone if need == "cond" else joined(rows, without, scale)
        return Prediction(guided, alone, alone if need == "cond" else torch.stack(without), variance)

    return Guided(predict)


def compose_with_picture(
    denoise: ConditionedDenoiser,
    conds: Sequence[Sequence[tuple[Conditioning, float]]],
    unconds: Sequence[Conditioning],
    scale: float,
    image_scale: float,
    batched: bool = True,
) -> Guided:
    """Guidance by text and by a picture, which is the condition "concat" (Brooks et al. 2023, equation 3).

    blank + image_scale * (uncond - blank) + scale * (cond - uncond), where blank has neither text nor picture. The
    others are as of `compose`.
    """
    weighed = [
        [
            *((cond, scale * weight) for cond, weight in wanted),
            (uncond, image_scale - scale * sum(weight for _, weight in wanted)),
        ]
        for wanted, uncond in zip(conds, unconds, strict=True)
    ]
    blanks = [uncond | {"concat": torch.zeros_like(uncond["concat"])} for uncond in map(dict, unconds)]
    return compose(denoise, weighed, blanks, 1.0, batched)


def stack_alike(
    conds: Sequence[Conditioning], which: range, apart_from: int | None
) -> list[tuple[list[int], Conditioning]]:
    """Conditions without a batch axis as batches of equal shapes, each with the places that its rows have in conds.

    apart_from: the place from which conditions are never together with earlier ones; None for no such place.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in which:
        shapes = tuple(value.shape for value in conds[i].values())
        groups.setdefault((shapes, apart_from is None or i < apart_from), []).append(i)
    return [
        (rows, {key: torch.stack([conds[i][key] for i in rows]) for key in conds[rows[0]]})
        for rows in groups.values()
    ]


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


Mask = Callable[[Tensor], Tensor]  # of sigma: 1 where to draw, 0 where it is known


def keep_known(D: Denoiser, latent: Tensor, mask: Tensor | Mask, noise: Tensor) -> Denoiser:
    """Inpainting with any network: known parts are kept, at every step with the noise that belongs to it.

    latent, noise: (B, C, H, W), the known picture and its noise. mask: 1 where to draw, 0 where it is known,
    anything between, or such a mask for each sigma; it broadcasts. Source: Lugmayr et al. 2022, equation 8, without
    resampling.
    """
    at = mask if callable(mask) else lambda sigma: mask

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.device, x.dtype).expand(len(x)).view(-1, 1, 1, 1)
        drawn = at(sigma)
        return drawn * x + (1 - drawn) * (latent + level * noise)

    def kept(x0: Tensor, sigma: Tensor) -> Tensor:
        drawn = at(sigma)
        return drawn * x0 + (1 - drawn) * latent

    if isinstance(D, Guided):

        def predict(x: Tensor, sigma: Tensor, need: Need) -> Prediction:
            *x0s, variance = D.predict(seen(x, sigma), sigma, need)
            guided, cond, uncond = (kept(x0, sigma) for x0 in x0s)
            return Prediction(guided, cond, uncond, variance)

        return Guided(predict)
    return lambda x, sigma: kept(D(seen(x, sigma), sigma), sigma)


def from_own_level(strengths: Tensor, sigmas: Tensor) -> Mask:
    """The mask at each sigma by which every pixel is drawn from a noise level of its own on.

    strengths: (B, 1, H, W) or what broadcasts to it, 0 to 1: the last int(strength * n) + 1 of the n steps draw a pixel,
    and none draws it at 0. sigmas: (n+1,), the sampler's. Source: Differential Diffusion, Levin and Fried 2023,
    algorithm 1, which draws all pixels in the last step.
    """
    starts = sigmas[:-1].cpu()

    def at(sigma: Tensor) -> Tensor:
        # a sampler may take sigma by a logarithm; between two steps the one before it counts
        here = torch.as_tensor(sigma, dtype=torch.float64).cpu().view(-1, 1) * (1 - 1e-6)
        later = len(starts) - (starts >= here).sum(1)  # steps that come after this one
        least = (
            (later.clamp_max(len(starts) - 1) / len(starts))
            .to(strengths.device, strengths.dtype)
            .view(-1, 1, 1, 1)
        )
        return ((strengths >= least) & (strengths > 0)).to(strengths.dtype)

    return at
