"""The Fréchet distance against SciPy, torchmetrics and closed forms, and its laws."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from inkwash.metrics.estimates import TooFewSamplesError
from inkwash.metrics.frechet import Moments, frechet_distance, frechet_estimate, group_moments, read_moments
from tests.support.samples import features, gaussian_samples


class Itself(nn.Module):
    """A feature network that gives back what it gets, for torchmetrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("num_a", "num_b"), [(500, 400), (10, 500)])  # the second has a singular covariance
def test_it_is_that_of_scipy(num_a: int, num_b: int) -> None:
    a, b = features(num_a, 16, seed=0), features(num_b, 16, seed=1, shift=0.5)
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(cov_x @ cov_y).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * root)
    tolerance = 1e-6 if num_a > 16 else 1e-4  # scipy's own, of a singular matrix
    assert frechet_distance(a, b) == pytest.approx(expected, rel=tolerance)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=tolerance)


def test_it_is_that_of_torchmetrics() -> None:
    a, b = features(300, 12, seed=0), features(200, 12, seed=1, shift=0.3)
    theirs = FrechetInceptionDistance(feature=Itself(12)).set_dtype(torch.float64)
    theirs.update(a.double(), real=True)
    theirs.update(b.double(), real=False)
    estimate = frechet_estimate(group_moments(a), group_moments(b))
    assert estimate.value == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_of_a_shift_and_of_itself() -> None:
    a = features(300, 8, seed=0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)


def test_it_grows_with_noise_and_with_modes_that_are_missing() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.cat([features(200, 8, seed=seed, shift=3.0 * seed) for seed in range(5)])
    noise = torch.randn(a.shape, generator=random)
    noisy = [frechet_distance(a, a + sigma * noise) for sigma in (0.1, 0.5, 1.0, 2.0)]
    dropped = [frechet_distance(a, a[: 200 * num]) for num in (5, 4, 3, 2, 1)]
    assert noisy == sorted(noisy) and noisy[0] > 0
    assert dropped == sorted(dropped) and dropped[1] > 0.1


def test_it_grows_with_blur_of_pictures() -> None:
    """Over a random convolution's features, of pictures of squares."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(600, 3, 8, 8, generator=random)
    pictures = nn.functional.interpolate(coarse, scale_factor=4.0)
    kernels = torch.randn(12, 3, 5, 5, generator=random)

    def seen(pixels: Tensor) -> Tensor:
        return nn.functional.conv2d(pixels, kernels).relu().mean(dim=(2, 3))

    def blurred(pixels: Tensor, width: int) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 2 * width + 1, 1, width, count_include_pad=False)

    real, made = seen(pictures[:300]), [seen(blurred(pictures[300:], width)) for width in range(5)]
    distances = [frechet_distance(each, real) for each in made]
    assert distances == sorted(distances) and distances[1] > 2 * distances[0]


def test_moments_of_shards_add_up_to_those_of_the_whole() -> None:
    rows = features(1000, 6, seed=0, shift=100.0).double()
    whole = Moments.of(rows)
    sharded = Moments.of(rows[:1]) + Moments.of(rows[1:700]) + Moments.of(rows[700:])
    torch.testing.assert_close(sharded.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(sharded.covariance, torch.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_the_interval_covers_the_true_distance_of_gaussians() -> None:
    """In 95 of 100 pairs of samples, up to chance."""
    scale, shift = torch.tensor([1.0, 1.5, 0.5, 2.0]), torch.tensor([0.3, 0.0, -0.2, 0.1])
    truth = float(shift.square().sum() + (scale - 1).square().sum())
    covered = 0
    for trial in range(100):
        a, b = gaussian_samples(2 * trial, 300, 4), gaussian_samples(2 * trial + 1, 300, 4) * scale + shift
        estimate = frechet_estimate(group_moments(a), group_moments(b))
        covered += estimate.low <= truth <= estimate.high
    assert 90 <= covered <= 99


def test_the_interval_is_freed_of_the_bias_of_few_samples() -> None:
    """Of equal distributions the distance is 0, and the value of few samples is not."""
    estimates = [
        frechet_estimate(
            group_moments(gaussian_samples(seed, 200, 16)),
            group_moments(gaussian_samples(100 + seed, 200, 16)),
        )
        for seed in range(10)
    ]
    assert all(estimate.value > 0.5 for estimate in estimates)
    assert sum(estimate.low == 0 for estimate in estimates) >= 9


def test_statistics_in_pytorch_fids_files(tmp_path) -> None:
    a, b = features(300, 8, seed=0), features(400, 8, seed=1)
    np.savez(tmp_path / "b.npz", mu=b.double().mean(0).numpy(), sigma=torch.cov(b.double().T).numpy())
    reference = read_moments(tmp_path / "b.npz")
    assert frechet_estimate(group_moments(a), [reference]).value == pytest.approx(
        frechet_distance(a, b), rel=1e-9
    )
    np.savez(tmp_path / "c.npz", mu=np.zeros(3), sigma=np.eye(2))
    for name in ("c.npz", "none.npz"):
        with pytest.raises(ValueError, match=name):
            read_moments(tmp_path / name)


def test_too_few_samples_are_refused_with_the_reason() -> None:
    few = group_moments(features(16, 16, seed=0))
    with pytest.raises(TooFewSamplesError, match="needs at least 17 pictures, not 16: their covariance"):
        frechet_estimate(few, few)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 4), torch.zeros(4), torch.full((4, 4), math.nan), torch.zeros(4, 3)]
)
def test_features_that_give_no_distance(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be finite \(N, D\)|two sets of features of one width"):
        frechet_distance(torch.zeros(4, 4), bad)
