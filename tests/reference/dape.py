"""DAPE once more, slowly: one query and key at a time, plain floats (arXiv 2405.14722, section 3)."""

from __future__ import annotations

Vector = list[float]
Matrix = list[Vector]


def leaky(x: float) -> float:
    return x if x > 0 else 0.01 * x


def affine(weight: Matrix, bias: Vector, x: Vector) -> Vector:
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def products(q: list[Matrix], k: list[Matrix], scale: float) -> list[Matrix]:
    """[head][query][key] of q [head][query][channel] and k [key head][key][channel], groups side by side."""
    size = len(q) // len(k)
    return [
        [[scale * sum(a * b for a, b in zip(one, other, strict=True)) for other in k[h // size]] for one in q[h]]
        for h in range(len(q))
    ]


def scores(
    a: list[Matrix], b: list[Matrix], first: tuple[Matrix, Vector], second: tuple[Matrix, Vector]
) -> list[Matrix]:
    """A + B + f(A, B), [head][query][key], from A and B of that shape and f's two layers (weight, bias)."""
    heads, queries, keys = len(a), len(a[0]), len(a[0][0])
    result = [[[0.0] * keys for _ in range(queries)] for _ in range(heads)]
    for n in range(queries):
        for m in range(keys):
            x = [a[h][n][m] for h in range(heads)] + [b[h][n][m] for h in range(heads)]
            adapted = affine(*second, [leaky(y) for y in affine(*first, x)])
            for h in range(heads):
                result[h][n][m] = a[h][n][m] + b[h][n][m] + adapted[h]
    return result
