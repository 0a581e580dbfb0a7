"""ALiBi once more, slowly, from the paper."""

from __future__ import annotations


def slopes(num_heads: int) -> list[float]:
    """A geometric sequence that starts at its own ratio, 2^(-8/n); in between powers of two, every other of 2n's."""
    powers = [2**p for p in range(20) if 2**p <= num_heads]
    n = powers[-1]
    found = []
    slope = 1.0
    for _ in range(n):
        slope *= 2 ** (-8 / n)
        found.append(slope)
    finer = 2 ** (-8 / (2 * n))
    odd = [finer ** (2 * index + 1) for index in range(num_heads - n)]
    return found + odd


def bias(num_heads: int, query: int, key: int) -> list[float]:
    """What each head adds to the score of one query and one key."""
    return [-slope * abs(query - key) for slope in slopes(num_heads)]
