"""xPos once more, slowly: one score from two vectors, in complex numbers (arXiv 2212.10554, section 2)."""

from __future__ import annotations

import cmath

Vector = list[float]


def pair_channels(c: int, d: int, layout: str) -> tuple[int, int]:
    return (c, c + d // 2) if layout == "half" else (2 * c, 2 * c + 1)


def zeta(c: int, d: int, gamma: float) -> float:
    return (c / (d / 2) + gamma) / (1 + gamma)


def score(
    q: Vector, k: Vector, n: int, m: int, base: float, scale_base: float, gamma: float, layout: str = "half"
) -> float:
    """Query q at n and key k at m: sum of Re[q_c conj(k_c) exp(i (n - m) theta_c)] zeta_c^((n - m) / scale_base)."""
    d, total = len(q), 0.0
    for c in range(d // 2):
        one, other = pair_channels(c, d, layout)
        turn = cmath.exp(1j * (n - m) * base ** (-2 * c / d))
        pair = complex(q[one], q[other]) * complex(k[one], k[other]).conjugate() * turn
        total += pair.real * zeta(c, d, gamma) ** ((n - m) / scale_base)
    return total
