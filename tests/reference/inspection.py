"""Slow oracles for what `inspect` measures, in float64 with loops, from the definitions alone."""

from __future__ import annotations

import math

import numpy as np

FIRST_QUERY, RECENT = 64, 16


def attention(q: np.ndarray, k: np.ndarray, scale: float, window: int | None = None) -> np.ndarray:
    """Causal weights (N, N) of one head's q and k (N, d), each query seeing its last `window` tokens."""
    weights = np.zeros((len(q), len(q)))
    for n in range(len(q)):
        first = 0 if window is None else max(0, n - window + 1)
        scores = [scale * float(np.dot(q[n], k[m])) for m in range(first, n + 1)]
        top = max(scores)
        powers = [math.exp(score - top) for score in scores]
        weights[n, first : n + 1] = np.array(powers) / sum(powers)
    return weights


def sinks(weights: np.ndarray, few: int) -> dict[str, float]:
    """The mean mass of the first token and of the first few, and the largest mean mass of one token that isn't among
    a query's last 16, over all queries past place 64.
    """
    queries = range(FIRST_QUERY, len(weights))
    columns = []
    for m in range(len(weights)):
        columns.append(sum(weights[n, m] for n in queries if m <= n - RECENT) / len(queries))
    return {
        "first": sum(weights[n, 0] for n in queries) / len(queries),
        "few": sum(weights[n, m] for n in queries for m in range(few)) / len(queries),
        "largest": max(columns),
        "largest_at": columns.index(max(columns)),
    }


def band(x: np.ndarray, f: int, layout: str, width: int) -> np.ndarray:
    """The two channels of band f of x (N, d)."""
    pair = [f, f + width // 2] if layout == "half" else [2 * f, 2 * f + 1]
    return np.asarray(x, dtype=np.float64)[:, pair]


def usage(x: np.ndarray, f: int, layout: str, width: int) -> float:
    """The mean length of a band's vectors."""
    return float(np.mean([math.sqrt(a * a + b * b) for a, b in band(x, f, layout, width)]))


def cone(x: np.ndarray, f: int, layout: str, width: int) -> tuple[float, float, float]:
    """(gamma, N beta_min^2 |k|^2 cos^2 gamma or 0 where gamma is above a right angle, lambda_max) of a band."""
    vectors = band(x, f, layout, width)
    values, axes = np.linalg.eigh(sum(np.outer(v, v) for v in vectors))
    axis = axes[:, -1]
    if sum(float(v @ axis) * float(np.linalg.norm(v)) for v in vectors) < 0:
        axis = -axis
    angles = [math.acos(max(-1.0, min(1.0, float(v @ axis) / float(np.linalg.norm(v))))) for v in vectors]
    gamma, shortest = max(angles), min(float(np.linalg.norm(v)) for v in vectors)
    bound = len(vectors) * shortest**2 * math.cos(gamma) ** 2 if gamma < math.pi / 2 else 0.0
    return gamma, bound, float(values[-1])


def squared_cosines(x: np.ndarray, rows: list[int], number: int) -> np.ndarray:
    """cos^2 of some rows of x (N, d) with the leading right singular vectors of all of x: (rows, number)."""
    directions = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)[2][:number]
    return np.array([[(x[n] @ u) ** 2 / (x[n] @ x[n]) for u in directions] for n in rows])


def spearman(one: list[float], other: list[float]) -> float:
    """The correlation of ranks, ties at their mean place."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])
