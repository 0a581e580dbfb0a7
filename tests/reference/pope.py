"""PoPE once more, slowly: a score as a sum of complex numbers, from the paper's equations 3 to 8."""

from __future__ import annotations

import cmath
import math

Vector = list[float]


def magnitude(x: float, name: str = "softplus") -> float:
    """Equation 3, and its two ablations."""
    if name == "softplus":
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
    return max(x, 0.0) if name == "relu" else x


def clamped(delta: float) -> float:
    return min(max(delta, -2 * math.pi), 0.0)


def score(
    q: Vector,
    k: Vector,
    t: int,
    s: int,
    base: float,
    delta: Vector | None = None,
    name: str = "softplus",
    width: int | None = None,
) -> float:
    """Query q at t and key k at s: Re of the sum of conj(mu_q e^(i t theta)) mu_k e^(i (s theta + delta))."""
    width = len(q) if width is None else width
    total = 0.0
    for c in range(width):
        theta = base ** (-c / width)
        of_query = cmath.rect(1.0, t * theta) * magnitude(q[c], name)
        of_key = cmath.rect(1.0, s * theta + (delta[c] if delta else 0.0)) * magnitude(k[c], name)
        total += (of_query.conjugate() * of_key).real
    return total + sum(a * b for a, b in zip(q[width:], k[width:], strict=True))
