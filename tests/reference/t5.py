"""T5's buckets once more, in whole numbers: no logarithm, so no rounding at their edges."""

from __future__ import annotations


def bucket(query: int, key: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """Which bucket one query and one key fall into."""
    if bidirectional:
        half = num_buckets // 2
        return (half if key > query else 0) + one_way(abs(query - key), half, max_distance)
    return one_way(max(query - key, 0), num_buckets, max_distance)


def one_way(distance: int, buckets: int, max_distance: int) -> int:
    """One bucket a distance up to half of them, then steps of equal ratio up to max_distance."""
    exact = buckets // 2
    if distance < exact:
        return distance
    steps = buckets - exact
    # distance >= exact * (max_distance / exact)^(step / steps), both sides to the power of `steps`
    step = max(s for s in range(steps + 1) if distance**steps >= exact ** (steps - s) * max_distance**s)
    return min(exact + step, buckets - 1)
