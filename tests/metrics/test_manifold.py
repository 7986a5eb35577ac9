"""Precision, recall and neighbours against SciPy's trees, and on sets whose figures are known."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from inkwash.metrics import manifold
from inkwash.metrics.estimates import TooFewSamplesError
from inkwash.metrics.manifold import diversity, manifold_figures, memorised, nearest
from tests.support.samples import features, gaussian_samples


def test_figures_are_those_of_scipys_trees(monkeypatch) -> None:
    monkeypatch.setattr(manifold, "ROWS", 64)  # so that there are several chunks
    real, made = features(200, 4, seed=0).double(), features(150, 4, seed=0, shift=1.0).double()[:150]
    x, y = real.numpy(), made.numpy()
    trees = {"x": cKDTree(x), "y": cKDTree(y)}
    r3, r5 = (trees["x"].query(x, k + 1)[0][:, k] for k in (3, 5))
    own = trees["y"].query(y, 4)[0][:, 3]
    apart = np.linalg.norm(x[:, None] - y[None], axis=-1)
    found = manifold_figures(real, made)
    assert found.precision.value == pytest.approx((apart <= r3[:, None]).any(0).mean())
    assert found.recall.value == pytest.approx((apart <= own).any(1).mean())
    assert found.density.value == pytest.approx((apart <= r5[:, None]).sum(0).mean() / 5)
    assert found.coverage.value == pytest.approx((trees["y"].query(x)[0] <= r5).mean())
    assert 0.1 < found.precision.value < 1 and 0.1 < found.recall.value < 1


def test_of_the_same_set_and_of_one_far_away() -> None:
    a = features(100, 4, seed=0)
    same, far = manifold_figures(a, a), manifold_figures(a, a + 1000)
    assert same.precision.value == same.recall.value == same.coverage.value == 1
    assert far.precision.value == far.recall.value == far.density.value == far.coverage.value == 0


def test_dropped_modes_cost_recall_and_noise_costs_precision() -> None:
    real = torch.cat([gaussian_samples(k, 100, 4) + 20 * k for k in range(4)])
    half = torch.cat([gaussian_samples(10 + k, 200, 4) + 20 * k for k in range(2)])
    noisy = torch.cat([4 * gaussian_samples(20 + k, 100, 4) + 20 * k for k in range(4)])
    dropped, spread = manifold_figures(real, half), manifold_figures(real, noisy)
    assert dropped.precision.value > 0.9 and dropped.recall.value < 0.55 and dropped.coverage.value < 0.55
    assert spread.precision.value < 0.5 and spread.recall.value > 0.9


def test_nearest_is_scipys() -> None:
    a, b = features(70, 5, seed=0).double(), features(90, 5, seed=1).double()
    distance, index = cKDTree(b.numpy()).query(a.numpy())
    ours = nearest(a, b)
    np.testing.assert_allclose(ours[0].numpy(), distance, rtol=1e-6)
    assert ours[1].tolist() == index.tolist()


def test_copies_of_training_samples_are_found() -> None:
    training, heldout = gaussian_samples(0, 500, 6), gaussian_samples(1, 400, 6)
    copies, new = training[:60] + 1e-3, gaussian_samples(2, 140, 6)
    usual = nearest(heldout, training)[0]
    apart, index = nearest(torch.cat([copies, new]), training)
    assert memorised(apart, usual).value == pytest.approx(0.3, abs=0.03)
    assert index[:60].tolist() == list(range(60)) and float(apart[:60].max()) < 0.01
    assert memorised(apart[60:], usual).value < 0.05
    with pytest.raises(TooFewSamplesError, match="memorisation needs at least 100 pictures, not 99"):
        memorised(apart, usual[:99])


def test_diversity_is_the_mean_over_pairs() -> None:
    a = features(60, 4, seed=0, shift=0.5).double()
    unit = a / a.norm(dim=1, keepdim=True)
    apart = 1 - unit @ unit.T
    assert diversity(a).value == pytest.approx(float(apart.sum() / (60 * 59)), rel=1e-9)
    assert diversity(a[:1].expand(60, 4)).value == pytest.approx(0, abs=1e-9)
