"""Rotary linear attention: RoFormer eq. 19 token by token, blocks of any size, memory, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import frequencies as reference_frequencies
from tests.reference import rope as reference
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.attention.linear import rotary_linear_attention
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError


def content(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 7)])
def test_equation_19(causal: bool, layout: str, queries: int, keys: int) -> None:
    q, k, v = content(2, 4, queries, 8), content(2, 2, keys, 8), content(2, 2, keys, 5)
    of_keys = torch.arange(keys) + torch.tensor([[0], [20]])
    of_queries = of_keys[:, keys - queries :]
    rope = RoPE(8, base=100.0, layout=layout, rotary_dim=6)
    positions = (of_queries, of_keys)
    ours = rotary_linear_attention(q, k, v, rope, positions, causal=causal, block_size=2)
    assert ours.shape == (2, 4, queries, 5) and ours.dtype == torch.float64
    frequencies = reference_frequencies.default(6, 100.0)
    for b in range(2):
        for h in range(4):
            lists = (x.tolist() for x in (q[b, h], k[b, h // 2], v[b, h // 2], of_queries[b], of_keys[b]))
            expected = reference.linear_attention(*lists, frequencies, layout, causal)
            # the tables are float32
            torch.testing.assert_close(ours[b, h].tolist(), expected, rtol=2e-5, atol=2e-5)


@given(tokens=st.integers(1, 40), block_size=st.integers(1, 50), cut=st.integers(0, 39))
def test_blocks_and_chunks_equal_the_whole(tokens: int, block_size: int, cut: int) -> None:
    cut = min(cut, tokens - 1)
    q, k, v = content(1, 2, tokens, 4), content(1, 2, tokens, 4), content(1, 2, tokens, 3)
    positions = torch.arange(tokens)
    whole = rotary_linear_attention(q, k, v, RoPE(4), positions)
    blocks = rotary_linear_attention(q, k, v, RoPE(4).module(), positions, block_size=block_size)
    last = rotary_linear_attention(q[:, :, cut:], k, v, RoPE(4), (positions[cut:], positions), block_size=block_size)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(last, whole[:, :, cut:])


def test_later_tokens_change_nothing_earlier() -> None:
    q, k, v = content(1, 1, 20, 4), content(1, 1, 20, 4), content(1, 1, 20, 3)
    before = rotary_linear_attention(q, k, v, RoPE(4), torch.arange(20), block_size=8)
    v[:, :, 13:], k[:, :, 13:] = 9.0, 3.0
    after = rotary_linear_attention(q, k, v, RoPE(4), torch.arange(20), block_size=8)
    assert torch.equal(before[:, :, :13], after[:, :, :13])


def test_another_feature_map_and_low_precision() -> None:
    q, k, v = (content(1, 2, 300, 8).bfloat16() for _ in range(3))
    ours = rotary_linear_attention(q, k, v, RoPE(8), torch.arange(300), feature_map=torch.exp)
    exact = rotary_linear_attention(
        q.double(), k.double(), v.double(), RoPE(8), torch.arange(300), feature_map=torch.exp
    )
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)


def test_gradients_pass() -> None:
    inputs = tuple(content(1, 1, 5, 4).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda q, k, v: rotary_linear_attention(q, k, v, RoPE(4), torch.arange(5), block_size=2), inputs
    )


def test_no_matrix_of_all_tokens() -> None:
    tokens, largest = 3000, 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    q = torch.randn(1, 1, tokens, 8)
    for causal in (True, False):
        with Largest():
            rotary_linear_attention(q, q, q, RoPE(8), torch.arange(tokens), causal=causal)
    assert tokens * 8 <= largest <= 128 * 128 * 2


@pytest.mark.parametrize(
    ("shapes", "argument"),
    [
        (((1, 4, 5, 8), (1, 3, 5, 8), (1, 3, 5, 8)), "k.shape"),
        (((2, 4, 5, 8), (1, 4, 5, 8), (1, 4, 5, 8)), "k.shape"),
        (((1, 4, 5, 8), (1, 4, 5, 6), (1, 4, 5, 6)), "k.shape"),
        (((1, 4, 5, 8), (1, 4, 5, 8), (1, 4, 6, 8)), "v.shape"),
        (((1, 4, 5, 8), (1, 4, 5, 8), (4, 5, 8)), "v.shape"),
        (((1, 4, 0, 8), (1, 4, 5, 8), (1, 4, 5, 8)), "q.shape"),
        (((1, 4, 6, 8), (1, 4, 5, 8), (1, 4, 5, 8)), "causal"),
        (((1, 4, 5, 6), (1, 4, 5, 6), (1, 4, 5, 6)), "q.shape"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(shapes: Any, argument: str) -> None:
    q, k, v = (torch.zeros(shape) for shape in shapes)
    positions = (torch.arange(q.shape[-2]), torch.arange(k.shape[-2]))
    with pytest.raises(ArgumentError, match=f"^{argument}="):
        rotary_linear_attention(q, k, v, RoPE(8), positions)
