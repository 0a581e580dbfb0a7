"""Remapped positions once more, slowly: the relative position of each pair, then complex numbers and loops."""

from __future__ import annotations

from collections.abc import Callable

from tests.reference.rope import Vector, dot, rotated

Distance = Callable[[int, int], float]


def self_extend(n: int, m: int, window: int, group: int) -> int:
    """2401.01325: exact under the window, else grouped positions with the query's shifted."""
    if n - m < window:
        return n - m
    return (n // group + window - window // group) - m // group


def rerope(n: int, m: int, window: int, leak: float | None) -> float:
    """kexue.fm/archives/9708: exact under the window w, then w, or w + (n - m - w) / k."""
    if n - m < window:
        return n - m
    return window if leak is None else window + (n - m - window) * leak


def dual_chunk(n: int, m: int, chunk: int, local: int) -> int:
    """2402.17463: key index m mod s; query index by how many chunks back the key is, from lists as printed."""
    largest = chunk + local - 1  # c - 1
    intra = list(range(chunk))
    successive = list(range(chunk, chunk + local)) + [largest] * (chunk - local)
    back = n // chunk - m // chunk
    query = intra[n % chunk] if back <= 0 else successive[n % chunk] if back == 1 else largest
    return query - m % chunk


def scores(
    queries: list[Vector],
    keys: list[Vector],
    query_positions: list[int],
    key_positions: list[int],
    distance: Distance,
    frequencies: Vector,
    layout: str,
    attention_scale: float,
) -> list[list[float]]:
    """One head's dot products (N, M): the query turned by the relative position, the key not at all.

    Both carry the attention scale, on the channels that turn.
    """
    result = []
    for q, n in zip(queries, query_positions, strict=True):
        row = []
        for k, m in zip(keys, key_positions, strict=True):
            turned = rotated(q, distance(n, m), frequencies, layout, attention_scale)
            row.append(dot(turned, rotated(k, 0, frequencies, layout, attention_scale)))
        result.append(row)
    return result
