"""Weights between the two channel layouts: exact round trips, the same scores under the other rotation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.encodings.layouts import to_half, to_interleaved
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError


def projected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, num_heads, N, d) for x (B, N, D)."""
    return torch.nn.functional.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)


@given(heads=st.integers(1, 4), pairs=st.integers(1, 6), passed=st.integers(0, 5), seed=st.integers(0, 99))
def test_scores_are_the_same_in_the_other_layout(heads: int, pairs: int, passed: int, seed: int) -> None:
    torch.manual_seed(seed)
    head_dim, width = 2 * pairs + 2 * passed, 2 * pairs
    x, positions = torch.randn(2, 5, 12), torch.arange(5)
    both = [(torch.randn(heads * head_dim, 12), torch.randn(heads * head_dim)) for _ in "qk"]
    halves, interleaved = (RoPE(head_dim, layout=name, rotary_dim=width) for name in ("half", "interleaved"))
    q, k = halves(*(projected(x, w, b, heads) for w, b in both), positions)
    changed = [tuple(to_interleaved(part, heads, width) for part in pair) for pair in both]
    q2, k2 = interleaved(*(projected(x, w, b, heads) for w, b in changed), positions)
    torch.testing.assert_close(q2 @ k2.mT, q @ k.mT, rtol=1e-4, atol=1e-4)


@given(heads=st.integers(1, 4), pairs=st.integers(1, 6), passed=st.integers(0, 5))
def test_the_round_trip_is_exact(heads: int, pairs: int, passed: int) -> None:
    weight = torch.randn(heads * 2 * (pairs + passed), 3)
    for width in (2 * pairs, None):
        assert torch.equal(to_half(to_interleaved(weight, heads, width), heads, width), weight)
        assert torch.equal(to_interleaved(to_half(weight, heads, width), heads, width), weight)


def test_the_order_by_hand() -> None:
    rows = torch.arange(16)
    assert to_interleaved(rows, 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert to_interleaved(rows, 2, rotary_dim=4).tolist() == [
        0,
        2,
        1,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        9,
        11,
        12,
        13,
        14,
        15,
    ]


@pytest.mark.parametrize("convert", [to_half, to_interleaved])
@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((torch.zeros(10, 3), 3), "weight.shape"),
        ((torch.tensor(1.0), 1), "weight.shape"),
        ((torch.zeros(12, 3), 0), "num_heads"),
        ((torch.zeros(12, 3), 2.0), "num_heads"),
        ((torch.zeros(12, 3), 2, 5), "rotary_dim"),
        ((torch.zeros(12, 3), 2, 8), "rotary_dim"),
        ((torch.zeros(6, 3), 2), "head_dim"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(convert: Any, arguments: tuple[Any, ...], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        convert(*arguments)
