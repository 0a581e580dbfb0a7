"""DAPE V2 once more, slowly: one number at a time, on a map of keys without ends (arXiv 2410.04798, section 3)."""

from __future__ import annotations

Matrix = list[list[float]]
Kernels = list[list[list[float]]]  # [map out][map in][tap]


def convolved(kernels: Kernels, biases: list[float], maps: list[dict[int, float]], out: int, key: int) -> float:
    """One number of one map: taps centred on the key; a map is 0 where it has no entry."""
    side = len(kernels[0][0]) // 2
    total = biases[out]
    for taps, one in zip(kernels[out], maps, strict=True):
        total += sum(tap * one.get(key + t - side, 0.0) for t, tap in enumerate(taps))
    return total


def scores(
    a: list[Matrix],
    b: list[Matrix] | None,
    visible: list[list[bool]],
    first: tuple[Kernels, list[float]],
    second: tuple[Kernels, list[float]],
) -> list[Matrix]:
    """A + B + f(A, B), [head][query][key], with 0 where not visible; visible is [query][key].

    For each query the hidden maps start at its first visible key and go on past its last one.
    """
    heads, keys, side = len(a), len(a[0][0]), len(first[0][0][0]) // 2
    result = [[[0.0] * keys for _ in row] for row in a]
    for n, seen in enumerate(visible):
        in_sight = [m for m in range(keys) if seen[m]]
        maps = [{m: one[n][m] for m in in_sight} for one in a + (b or [])]
        start, stop = min(in_sight), max(in_sight) + side + 1
        hidden: list[dict[int, float]] = [{} for _ in first[1]]
        for out, into in enumerate(hidden):
            for m in range(start, stop):
                x = convolved(*first, maps, out, m)
                into[m] = x if x > 0 else 0.01 * x
        for h in range(heads):
            for m in in_sight:
                given = a[h][n][m] + (b[h][n][m] if b else 0.0)
                result[h][n][m] = given + convolved(*second, hidden, h, m)
    return result
