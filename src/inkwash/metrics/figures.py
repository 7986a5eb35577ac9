"""All figures of a set of pictures, alone, beside another set, or pair by pair. N, M pictures, D feature width."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inkwash.metrics.estimates import Estimate, TooFewSamplesError, mean_estimate
from inkwash.metrics.fidelity import ms_ssim, psnr, ssim
from inkwash.metrics.frechet import Moments, frechet_estimate, group_moments
from inkwash.metrics.inception_score import inception_score
from inkwash.metrics.kernel import kid
from inkwash.metrics.manifold import diversity, manifold_figures
from inkwash.metrics.networks import FeatureNetwork, Features
from inkwash.models.perceptual import PerceptualDistance

LOWER_IS_BETTER = {"frechet_distance", "spatial_frechet_distance", "kid", "cmmd", "lpips", "memorised"}
Watch = Callable[[int], object]  # is told of how many pictures are done


@dataclass(frozen=True)
class Figures:
    """Figures by name, and why others are not given."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Estimate]) -> None:
        """A figure, or the reason why there are too few pictures for it."""
        try:
            self.estimates[name] = make()
        except TooFewSamplesError as error:
            self.refused[name] = str(error)

    def update(self, other: "Figures") -> None:
        self.estimates.update(other.estimates)
        self.refused.update(other.refused)


def seen(network: FeatureNetwork, batches: Iterable[Tensor], watch: Watch = lambda num: None) -> Features:
    """Features that a network sees in all pictures of batches (B, 3, H, W)."""
    found: list[Features] = []
    for pixels in batches:
        found.append(network(pixels))
        watch(len(pixels))

    def together(name: str) -> Tensor | None:
        parts = [getattr(one, name) for one in found]
        return None if parts[0] is None else torch.cat(parts)

    pooled = together("pooled")
    assert pooled is not None
    return Features(pooled, together("logits"), together("spatial"))


def distribution_figures(made: Features, real: Features | Moments) -> Figures:
    """Distances of generated pictures from real ones, or from real ones' moments, which give the Fréchet distance alone."""
    figures = Figures()
    if isinstance(real, Moments):
        figures.add("frechet_distance", lambda: frechet_estimate(group_moments(made.pooled), [real]))
        return figures
    figures.add("frechet_distance", lambda: between(made.pooled, real.pooled))
    if made.spatial is not None and real.spatial is not None:
        spatial = made.spatial, real.spatial
        figures.add("spatial_frechet_distance", lambda: between(*spatial))
    figures.add("kid", lambda: kid(made.pooled, real.pooled))
    if made.logits is not None:
        logits = made.logits
        figures.add("inception_score", lambda: inception_score(logits))
    try:
        manifold = vars(manifold_figures(real.pooled, made.pooled))
    except TooFewSamplesError as error:
        figures.refused["precision"] = str(error)
    else:
        figures.estimates.update(manifold)
    figures.add("diversity", lambda: diversity(made.pooled))
    return figures


def between(made: Tensor, real: Tensor) -> Estimate:
    return frechet_estimate(group_moments(made), group_moments(real))


def pair_scores(
    made: Iterable[Tensor],
    wanted: Iterable[Tensor],
    distance: PerceptualDistance | None = None,
    watch: Watch = lambda num: None,
) -> dict[str, Tensor]:
    """PSNR, SSIM, MS-SSIM from 176 pixels on, and a perceptual distance (N,) of pairs, in batches (B, 3, H, W)."""
    found: dict[str, list[Tensor]] = {}
    for a, b in zip(made, wanted, strict=True):
        scores = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
        if min(a.shape[2:]) >= 176:
            scores["ms_ssim"] = ms_ssim(a, b)
        if distance is not None:
            with torch.inference_mode():
                scores["lpips"] = distance(a, b)
        for name, values in scores.items():
            found.setdefault(name, []).append(values.double())
        watch(len(a))
    return {name: torch.cat(values) for name, values in found.items()}


def means(scores: Mapping[str, Tensor]) -> Figures:
    """The mean of each of several scores (N,)."""
    figures = Figures()
    for name, values in scores.items():
        figures.add(name, lambda name=name, values=values: mean_estimate(values, name))
    return figures
