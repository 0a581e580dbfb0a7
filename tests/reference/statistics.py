"""Slow oracles for evaluation/score.py and student.py, written from the definitions alone.

Student's t by numerical integration of its density; cluster-robust variance as the sandwich estimator of a
regression on a constant; Wilson's bounds as the roots of its condition; tests by counting every outcome.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np


def t_cdf(t: float, df: float, steps: int = 200_000) -> float:
    """Half plus Simpson's integral of the density from 0 to t."""
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    x = np.linspace(0.0, t, steps + 1)
    density = np.exp(log_norm - (df + 1) / 2 * np.log1p(x * x / df))
    weights = np.ones(steps + 1)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return 0.5 + float(weights @ density) * (t / steps) / 3


def clustered_mean(values: list[float], clusters: list[object]) -> tuple[float, float]:
    """(mean, standard error): (X'X)^-1 (sum_c X_c' e_c e_c' X_c) (X'X)^-1 k/(k-1) with X a column of ones."""
    y = np.array(values, dtype=np.float64)
    x = np.ones((len(values), 1))
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ y
    meat = np.zeros((1, 1))
    labels = list(dict.fromkeys(clusters))
    for label in labels:
        rows = np.array([c == label for c in clusters])
        u = x[rows].T @ (y[rows] - x[rows] @ beta)
        meat += np.outer(u, u)
    k = len(labels)
    variance = (bread @ meat @ bread)[0, 0] * k / (k - 1)
    return float(beta[0]), float(np.sqrt(variance))


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """The values q at which |p - q| = z sqrt(q (1 - q) / n), on either side of p."""

    def excess(q: float) -> float:
        return abs(p - q) - z * math.sqrt(q * (1 - q) / n)

    def root(outside: float) -> float:
        inside = p
        if excess(outside) <= 0:
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return inside

    return root(0.0), root(1.0)


def sign_flip(sums: list[Fraction]) -> float:
    """The two-sided permutation p-value in exact arithmetic."""
    real = abs(sum(sums))
    patterns = list(itertools.product((1, -1), repeat=len(sums)))
    return sum(abs(sum(s * v for s, v in zip(p, sums, strict=True))) >= real for p in patterns) / len(patterns)


def mcnemar(won: int, lost: int) -> float:
    """Outcomes of won + lost fair coins at most as likely as the one seen."""
    n = won + lost
    chance = [Fraction(math.comb(n, i), 2**n) for i in range(n + 1)]
    return float(sum(c for c in chance if c <= chance[won]))


def holm(p_values: list[float]) -> list[float]:
    """The smallest family error rate at which the step-down procedure rejects each hypothesis."""

    def rejected(rate: float) -> list[bool]:
        done = [False] * len(p_values)
        for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[i] > rate / (len(p_values) - rank):
                break
            done[i] = True
        return done

    adjusted = []
    for i in range(len(p_values)):
        low, high = 0.0, 1.0
        if not rejected(1.0)[i]:
            adjusted.append(1.0)
            continue
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if rejected(middle)[i] else (middle, high)
        adjusted.append(high)
    return adjusted
