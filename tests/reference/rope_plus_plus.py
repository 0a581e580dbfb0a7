"""RoPE++ once more, slowly: one score from two vectors, in complex numbers (arXiv 2512.07525, section 3)."""

from __future__ import annotations

import cmath

Vector = list[float]


def pair_channels(c: int, width: int, layout: str) -> tuple[int, int]:
    return (c, c + width // 2) if layout == "half" else (2 * c, 2 * c + 1)


def score(q: Vector, k: Vector, n: int, m: int, frequencies: Vector, layout: str, is_imaginary: bool) -> float:
    """Query q at n and key k at m: Re z, or the paper's -Im of conj(z), z = sum q_c conj(k_c) exp(i (n - m) theta_c).

    Channels past the pairs add their plain products to either.
    """
    width = 2 * len(frequencies)
    conjugate = 0j
    for c, theta in enumerate(frequencies):
        one, other = pair_channels(c, width, layout)
        pair = complex(q[one], q[other]).conjugate() * complex(k[one], k[other])
        conjugate += pair * cmath.exp(-1j * (n - m) * theta)
    rest = sum(a * b for a, b in zip(q[width:], k[width:], strict=True))
    return rest + (-conjugate.imag if is_imaginary else conjugate.real)
