"""KERPLE's two kernels once more, for one head, one query and one key."""

from __future__ import annotations

import math


def bias(form: str, r1: float, r2: float, query: int, key: int) -> float:
    distance = abs(query - key)
    if form == "log":
        return -r1 * math.log(1 + r2 * distance)
    return -r1 * math.pow(distance, r2)
