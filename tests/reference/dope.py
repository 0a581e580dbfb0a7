"""DoPE by slow loops in float64, written from the formulas (arXiv 2511.09146), and its noise in Python.

Rotations are complex multiplications: one pair, one token, one head at a time.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence

# x[head][token][channel]
Vectors = list[list[list[float]]]
# (stream, head, position, channel) -> a draw of the standard normal distribution
Noise = Callable[[int, int, int, int], float]

ROTATION, QUERY, KEY = 0, 1, 2


def channels_of_pair(pair: int, width: int, layout: str) -> tuple[int, int]:
    return (pair, pair + width // 2) if layout == "half" else (2 * pair, 2 * pair + 1)


def turned(x: Sequence[float], turns: Sequence[complex], layout: str) -> list[float]:
    """One vector whose pair c is multiplied by the complex number turns[c]; channels past them stay."""
    out = list(x)
    for pair, turn in enumerate(turns):
        a, b = channels_of_pair(pair, 2 * len(turns), layout)
        product = complex(x[a], x[b]) * turn
        out[a], out[b] = product.real, product.imag
    return out


def changed(
    x: Sequence[float],
    position: int,
    noise_head: int,
    side: int,
    *,
    frequencies: Sequence[float],
    own_frequencies: Sequence[float],
    scale: float,
    layout: str,
    reading: str,
    original_length: int,
    sigma: float,
    noise: Noise,
) -> list[float]:
    """What a selected head's vector becomes; own_frequencies are the model's before its length rule."""
    count = len(frequencies)
    full = [scale * cmath.exp(1j * position * f) for f in frequencies]
    slow = [f <= 2 * math.pi / original_length for f in own_frequencies]
    if reading == "unrotated":
        return turned(x, [complex(scale) if s else t for s, t in zip(slow, full, strict=True)], layout)
    if reading == "drop":
        return turned(x, [0j if s else t for s, t in zip(slow, full, strict=True)], layout)
    if reading == "nope":
        return turned(x, [complex(scale)] * count, layout)
    if reading == "zero":
        return [0.0] * len(x)
    if reading == "rotation":
        drawn = [sigma * noise(ROTATION, noise_head, position, c) for c in range(2 * count)]
        return turned(x, [complex(drawn[c], drawn[count + c]) for c in range(count)], layout)
    drawn = [sigma * noise(side, noise_head, position, c) for c in range(len(x))]
    return drawn if reading == "replace" else [a * b for a, b in zip(x, drawn, strict=True)]


def scores(
    q: Vectors,
    k: Vectors,
    positions: Sequence[int],
    selected: Sequence[int],
    scope: str,
    apply_to: str,
    **how: object,
) -> Vectors:
    """scores[query head][n][m] = q_n . k_m / sqrt(d) after the encoding, each query head on its own."""
    size = len(q) // len(k)
    whole = {h // size for h in selected} if scope == "kv_group" else set()
    out = []
    for head in range(len(q)):
        group = head // size
        is_selected = head in selected or group in whole
        # A group that shares its key shares its noise: that of its first head.
        noise_head = group * size if scope == "kv_group" else head
        turns = {
            p: [how["scale"] * cmath.exp(1j * p * f) for f in how["frequencies"]]  # type: ignore[attr-defined, operator]
            for p in positions
        }
        rows = []
        for x, side, name in ((q[head], QUERY, "query"), (k[group], KEY, "key")):
            encoded = []
            for n, vector in enumerate(x):
                if is_selected and apply_to in ("both", name):
                    encoded.append(changed(vector, positions[n], noise_head, side, **how))  # type: ignore[arg-type]
                else:
                    encoded.append(turned(vector, turns[positions[n]], how["layout"]))  # type: ignore[arg-type]
            rows.append(encoded)
        scale = math.sqrt(len(q[0][0]))
        out.append([[sum(a * b for a, b in zip(x, y, strict=True)) / scale for y in rows[1]] for x in rows[0]])
    return out


def causal_softmax(one_head: list[list[float]]) -> list[list[float]]:
    """Rows over the keys up to the query's own."""
    out = []
    for n, row in enumerate(one_head):
        seen = row[: n + 1]
        weights = [math.exp(s - max(seen)) for s in seen]
        out.append([w / sum(weights) for w in weights] + [0.0] * (len(row) - n - 1))
    return out


def hashed_normal(seed: int, stream: int, layer: int, head: int, position: int, channel: int) -> float:
    """The noise in Python's integers and floats: MurmurHash3's last mix over the coordinates, Box-Muller."""
    step, mask = 0x9E3779B9, 2**32 - 1

    def mix(x: int) -> int:
        x %= 2**32
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    state = 0
    for part in (seed & mask, seed >> 32 & mask, stream, layer, head, position, channel):
        state = mix((state + step) ^ mix(part + step))
    second = mix(state + step)
    u, v = (((bits >> 8) + 0.5) / 2**24 for bits in (state, second))
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
