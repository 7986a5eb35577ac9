"""Inception score: how sure a classifier is of each picture, and how different its answers are. N samples, K classes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from inkwash.metrics.estimates import GROUPS, Estimate, check_features, in_groups, jackknife, require


def inception_score(logits: Tensor) -> Estimate:
    """exp of the mean KL of each answer to the mean answer (Salimans et al. 2016), of logits (N, K).

    The value is the mean over 10 parts, as published; the interval is that of one whole. Raises TooFewSamplesError for
    fewer than 100.
    """
    check_features(logits, "logits")
    require(len(logits), 10 * GROUPS, "an Inception score", "each of its 10 parts would have less than 10")
    groups = in_groups(logits.double())
    answers = torch.stack([rows.softmax(1).sum(0) for rows in groups])  # (G, K)
    sureness = torch.stack([(rows.softmax(1) * rows.log_softmax(1)).sum() for rows in groups])  # (G,)

    def statistic(kept: Sequence[int]) -> float:
        num = sum(len(groups[g]) for g in kept)
        mean = answers[kept].sum(0) / num
        return math.exp(float(sureness[kept].sum() / num - torch.special.xlogy(mean, mean).sum()))

    whole = jackknife(statistic)
    return Estimate(sum(statistic([g]) for g in range(GROUPS)) / GROUPS, whole.low, whole.high).within(low=1)
