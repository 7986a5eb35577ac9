"""The Inception score against torchmetrics."""

import math

import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from inkwash.metrics.inception_score import inception_score
from tests.metrics.test_frechet import Itself
from tests.support.samples import features


def test_it_is_that_of_torchmetrics() -> None:
    """Which shuffles first: our parts are rows k, k + 10, ... and its are chunks, of the same rows here."""
    logits = features(200, 5, seed=0).double()
    theirs = InceptionScore(feature=Itself(5), splits=10).set_dtype(torch.float64)
    theirs.update(logits)
    torch.manual_seed(3)
    expected = float(theirs.compute()[0])
    torch.manual_seed(3)
    shuffled = logits[torch.randperm(200)]
    assert inception_score(shuffled.view(10, 20, 5).transpose(0, 1).reshape(200, 5)).value == pytest.approx(
        expected, rel=1e-6
    )


def test_its_ends_are_one_and_the_number_of_classes() -> None:
    sure = 50 * torch.eye(7).repeat_interleave(10, 0).repeat(10, 1)
    assert inception_score(sure).value == pytest.approx(7, rel=1e-6)
    unsure = inception_score(torch.zeros(700, 7))
    assert unsure.value == pytest.approx(1) and unsure.low == pytest.approx(1)


def test_the_interval_covers_the_score_of_infinitely_many() -> None:
    """Two classes, and answers of p or 1 - p alike often."""
    p = 0.8
    truth = math.exp(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
    covered = 0
    for trial in range(50):
        sides = torch.rand(100, generator=torch.Generator().manual_seed(trial)) < 0.5
        logits = torch.where(sides[:, None], torch.tensor([p, 1 - p]), torch.tensor([1 - p, p])).log()
        estimate = inception_score(logits)
        covered += estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
    assert covered >= 40
