"""The intervals of `score`, from sums over prompts instead of every answer: the same figures, for many cells at once.

Prompts (haystacks) are the independent units. A single prompt has no interval.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ropewalk.evaluation.score import Estimate, alike, clustered_share
from ropewalk.evaluation.student import t_cdf, t_quantile

Numbers = NDArray[np.float64]
CONFIDENCE = 0.95


def mean_of(means: Numbers, counts: Numbers) -> Estimate:
    """The mean of all answers and its t-interval, from each prompt's mean and number of answers."""
    total = float(counts.sum())
    mean = float(means @ counts) / total
    error = _error(means, counts, mean)
    df = len(means) - 1
    reach = math.inf if df == 0 else 0.0 if error == 0 else error * t_quantile((1 + CONFIDENCE) / 2, df)
    return Estimate(mean, mean - reach, mean + reach, error, int(total), len(means), df > 0, CONFIDENCE)


def share_of(right: Numbers, counts: Numbers) -> Estimate:
    """The share of right answers and its Wilson interval, as `clustered_share` has it; of one cluster, from 0 to 1."""
    total = float(counts.sum())
    p = float(right.sum()) / total
    if len(counts) == 1:
        return Estimate(p, 0.0, 1.0, math.inf, int(total), 1, False, CONFIDENCE)
    return clustered_share(p, int(total), _error(right / counts, counts, p), len(counts), CONFIDENCE)


def difference_of(means: Numbers, baseline: Numbers, counts: Numbers) -> tuple[Estimate, float]:
    """The mean difference to a baseline on the same prompts with its t-interval, and p of the two-sided t-test."""
    estimate = mean_of(means - baseline, counts)
    if estimate.standard_error == 0:
        return alike(estimate)
    if estimate.clusters == 1:
        return estimate, 1.0
    return estimate, min(1.0, 2 * t_cdf(-abs(estimate.mean) / estimate.standard_error, estimate.clusters - 1))


def _error(means: Numbers, counts: Numbers, mean: float) -> float:
    k = len(means)
    if k == 1:
        return math.inf
    deviations = (means - mean) * counts
    return math.sqrt(k / (k - 1) * float(deviations @ deviations)) / float(counts.sum())
