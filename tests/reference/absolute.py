"""Sinusoids once more, slowly: one number at a time, from section 3.5 of 1706.03762."""

from __future__ import annotations

import math


def sinusoid(position: int, width: int, base: float) -> list[float]:
    """PE(pos, 2i) = sin(pos / base^(2i/d)), PE(pos, 2i + 1) = cos(pos / base^(2i/d))."""
    row = []
    for i in range(width // 2):
        angle = position / base ** (2 * i / width)
        row += [math.sin(angle), math.cos(angle)]
    return row
