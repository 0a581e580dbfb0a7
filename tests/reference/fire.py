"""FIRE's function once more, for one query and one key, with loops for its network."""

from __future__ import annotations

import math

Vector = list[float]


def bias(
    query: int,
    key: int,
    c: float,
    threshold: float,
    first: tuple[Vector, Vector],
    second: tuple[list[Vector], Vector],
) -> Vector:
    """One number a head; layers are (weights, biases), the second's weights a row a head."""
    x = math.log(c * (query - key) + 1) / math.log(c * max(threshold, query) + 1)
    hidden = [max(0.0, weight * x + shift) for weight, shift in zip(*first, strict=True)]
    return [
        sum(weight * unit for weight, unit in zip(row, hidden, strict=True)) + shift
        for row, shift in zip(*second, strict=True)
    ]
