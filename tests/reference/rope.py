"""Rotary attention once more, slowly: complex numbers and loops, from RoFormer's equations."""

from __future__ import annotations

import cmath
import math

Vector = list[float]


def pair_channels(c: int, rotary_dim: int, layout: str) -> tuple[int, int]:
    """The two channels of pair c."""
    return (c, c + rotary_dim // 2) if layout == "half" else (2 * c, 2 * c + 1)


def rotated(x: Vector, position: int, frequencies: Vector, layout: str, scale: float = 1.0) -> Vector:
    """One token's vector: pair c, as a complex number, times scale * exp(i m theta_c) (eq. 12 and 15)."""
    result = list(x)
    for c, theta in enumerate(frequencies):
        a, b = pair_channels(c, 2 * len(frequencies), layout)
        turned = complex(x[a], x[b]) * scale * cmath.exp(1j * position * theta)
        result[a], result[b] = turned.real, turned.imag
    return result


def dot(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def elu_plus_one(x: Vector) -> Vector:
    return [a + 1 if a > 0 else math.exp(a) for a in x]


def linear_attention(
    queries: list[Vector],
    keys: list[Vector],
    values: list[Vector],
    query_positions: list[int],
    key_positions: list[int],
    frequencies: Vector,
    layout: str,
    causal: bool,
) -> list[Vector]:
    """RoFormer eq. 19 for one head, token by token; with `causal` the queries are the last tokens."""
    ahead = len(keys) - len(queries)
    results = []
    for m, q in enumerate(queries):
        phi_q = elu_plus_one(q)
        turned_q = rotated(phi_q, query_positions[m], frequencies, layout)
        numerator, denominator = [0.0] * len(values[0]), 0.0
        for n, k in enumerate(keys):
            if causal and n > m + ahead:
                continue
            phi_k = elu_plus_one(k)
            weight = dot(turned_q, rotated(phi_k, key_positions[n], frequencies, layout))
            numerator = [sum_ + weight * value for sum_, value in zip(numerator, values[n], strict=True)]
            denominator += dot(phi_q, phi_k)
        results.append([number / denominator for number in numerator])
    return results
