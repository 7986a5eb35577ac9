"""How close pictures are, one by one and as a whole. B batch, N pictures, D feature width."""

import torch
from torch import Tensor


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pixels (B, 3, H, W) in [-1, 1]."""
    mse = ((made - wanted) / 2).double().square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp_min(1e-12))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two feature sets (N, D) taken as Gaussians (Heusel et al. 2017, equation 6).

    Which network gave the features is the caller's to say: only distances over the same one compare.
    Raises ValueError for fewer than two pictures or features that are not finite.
    """
    for name, features in (("first", a), ("second", b)):
        if features.ndim != 2 or len(features) < 2 or not torch.isfinite(features).all():
            raise ValueError(
                f"the {name} features must be finite (N, D) with N > 1, not {tuple(features.shape)}"
            )
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.atleast_2d(torch.cov(a.T)), torch.atleast_2d(torch.cov(b.T))
    # tr (Ca Cb)^1/2 is the sum of the square roots of the eigenvalues of Ca^1/2 Cb Ca^1/2, which is symmetric
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(distance.clamp_min(0))
