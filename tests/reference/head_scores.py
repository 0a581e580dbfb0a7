"""Scores of a head in float64, from the formulas and the N x d matrix X, never from its Gram matrix."""

from __future__ import annotations

import math

import numpy as np


def _eigenvalues(rows: np.ndarray) -> list[float]:
    """The eigenvalues of X^T X, largest first: the squared singular values of X, padded with zeros to d."""
    singular = np.linalg.svd(np.asarray(rows, dtype=np.float64), compute_uv=False)
    return [float(s) ** 2 for s in singular] + [0.0] * (rows.shape[1] - len(singular))


def _entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def band_entropy(rows: np.ndarray, layout: str, rotary_dim: int) -> float:
    total = 0.0
    for band in range(rotary_dim // 2):
        channels = [band, band + rotary_dim // 2] if layout == "half" else [2 * band, 2 * band + 1]
        values = _eigenvalues(rows[:, channels])
        total += _entropy([value / sum(values) for value in values])
    return total / (rotary_dim // 2)


def matrix_entropy(rows: np.ndarray) -> float:
    values = _eigenvalues(rows)
    return _entropy([value / sum(values) for value in values])


def truncated_effective_rank(rows: np.ndarray, r: int) -> float:
    values = _eigenvalues(rows)
    if r == 1:
        return 1 - values[0] / sum(values)
    return math.exp(_entropy([value / sum(values[:r]) for value in values[:r]]))


def truncated_entropy(rows: np.ndarray, r: int) -> float:
    values = _eigenvalues(rows)
    if r == 1:
        return 1 - values[0] / sum(values)
    return _entropy([value / sum(values) for value in values[:r]]) / r


def spectral_norm(rows: np.ndarray) -> float:
    values = _eigenvalues(rows)
    return values[0] / sum(values)


def mean_ranks(*columns: list[float]) -> list[float]:
    """For each entry the mean over columns of its rank; 1 = lowest, tied entries share their mean place."""
    ranks = []
    for i in range(len(columns[0])):
        places = []
        for column in columns:
            below = sum(value < column[i] for value in column)
            same = sum(value == column[i] for value in column)
            places.append(below + (same + 1) / 2)
        ranks.append(sum(places) / len(places))
    return ranks
