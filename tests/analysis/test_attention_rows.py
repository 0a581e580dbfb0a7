from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import inspection as oracle
from torch import Tensor

from ropewalk.analysis import attention_rows as rows_module
from ropewalk.analysis.attention_rows import AttentionRows, Biased, Given, Products
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend


def made(num_heads: int, keys: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda heads: torch.randn(heads, tokens, 8, generator=generator) * 2  # noqa: E731
    return draw(num_heads), draw(keys)


def whole(rows: AttentionRows) -> Tensor:
    """The whole matrix (H, N, N), put together from blocks of all queries."""
    found = torch.zeros(rows.num_heads, rows.num_tokens, rows.num_tokens)
    for group, heads in enumerate(rows.scores.groups):
        for part in rows.blocks(group, torch.arange(rows.num_tokens)):
            begin, weights = rows.weights(group, part)
            for head, of_head in zip(heads, weights, strict=True):
                found[head, part, begin : begin + weights.shape[-1]] = of_head.to(found.dtype)
    return found


@pytest.mark.parametrize("window", [None, 1, 7, 100])
def test_rows_are_the_softmax_of_what_each_query_sees(window: int | None) -> None:
    q, k = made(4, 3, 40)
    reads = [0, 2, 0, 1]  # as with keys of their own: a group isn't a run of heads
    found = whole(AttentionRows(Products(q, k, reads, 0.3), 4, 40, window))
    for head, key in enumerate(reads):
        expected = oracle.attention(q[head].double().numpy(), k[key].double().numpy(), 0.3, window)
        np.testing.assert_allclose(found[head], expected, atol=1e-6)


def test_a_mask_takes_the_place_of_order_and_window_and_a_query_that_sees_nothing_gives_nothing() -> None:
    q, k = made(4, 2, 30)
    scores = Products(q, k, [0, 0, 1, 1], 0.3)
    order = torch.ones(30, 30).tril().bool() & ~torch.ones(30, 30).tril(-9).bool()
    wanted = whole(AttentionRows(scores, 4, 30, 9))
    torch.testing.assert_close(whole(AttentionRows(scores, 4, 30, mask=order[None])), wanted)
    lowest = torch.zeros(4, 30, 30).masked_fill(~order, torch.finfo(torch.float32).min)
    torch.testing.assert_close(whole(AttentionRows(scores, 4, 30, 3, mask=lowest)), wanted)
    by_head = torch.stack([order, order, order, order.roll(1, 0)])
    assert torch.equal(whole(AttentionRows(scores, 4, 30, mask=by_head))[:3], wanted[:3])
    order[5] = False
    blind = whole(AttentionRows(scores, 4, 30, mask=order[None]))
    assert blind[:, 5].eq(0).all() and torch.equal(blind[:, 6:], wanted[:, 6:])


def test_a_sink_that_is_no_token_takes_its_share_and_a_cap_its_edge() -> None:
    q, k = made(2, 2, 20)
    plain = whole(AttentionRows(Products(q, k, [0, 1], 0.3), 2, 20))
    beside = torch.tensor([0.7, -50.0])
    shared = whole(AttentionRows(Products(q, k, [0, 1], 0.3), 2, 20, sinks=beside))
    scores = (q @ k.mT * 0.3).masked_fill(~torch.ones(20, 20).tril().bool(), -torch.inf)
    share = 1 / (1 + (0.7 - scores[0].logsumexp(-1)).exp())
    torch.testing.assert_close(shared[0], plain[0] * share[:, None])
    torch.testing.assert_close(shared[1], plain[1])
    capped = whole(AttentionRows(Products(q, k, [0, 1], 0.3, cap=2.0), 2, 20))
    torch.testing.assert_close(
        capped, torch.softmax((scores / 2).tanh().mul(2).masked_fill(scores.isinf(), -torch.inf), -1)
    )


def test_biases_and_scores_of_an_encodings_own() -> None:
    q, k = made(4, 2, 30)
    positions = torch.arange(30)[None]
    alibi: Any = ALiBi(4).module()
    scores = q @ k.repeat_interleave(2, 0).mT * 0.3 + alibi.bias(positions[0], positions[0])
    hidden = ~torch.ones(30, 30).tril().bool()
    found = whole(AttentionRows(Biased(alibi, q, k, [0, 0, 1, 1], 0.3, positions), 4, 30))
    torch.testing.assert_close(found, torch.softmax(scores.masked_fill(hidden, -torch.inf), -1))
    remap: Any = SelfExtend(RoPE(8), window=6, group=3).module()
    scores = remap.scores(q[None], remap.keys(k[None], positions), positions, positions, None, 0.3)[0]
    found = whole(AttentionRows(Given(remap, q, k, 0.3, positions), 4, 30))
    torch.testing.assert_close(found, torch.softmax(scores.masked_fill(hidden, -torch.inf), -1))


@given(
    tile=st.integers(1, 5000), least=st.integers(1, 9), step=st.integers(1, 7), window=st.sampled_from([None, 5, 64])
)
def test_the_size_of_blocks_changes_nothing(tile: int, least: int, step: int, window: int | None) -> None:
    q, k = made(3, 1, 64)
    rows = AttentionRows(Products(q, k, [0, 0, 0], 0.3), 3, 64, window)
    wanted = whole(rows)
    queries = torch.arange(63 % step, 64, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "TILE", tile)
        patch.setattr(rows_module, "LEAST_ROWS", least)
        parts = list(rows.blocks(0, queries))
        assert torch.equal(torch.cat(parts), queries)
        for part in parts:
            begin, weights = rows.weights(0, part)
            expected = wanted[:, part, begin : begin + weights.shape[-1]]
            torch.testing.assert_close(weights, expected)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


def test_no_block_is_larger_than_a_tile_once_it_has_16_queries() -> None:
    q, k = made(3, 1, 20_000)
    rows = AttentionRows(Products(q, k, [0, 0, 0], 0.3), 3, 20_000)
    for queries in (torch.arange(64, 20_000), torch.arange(64, 20_000, 7)):
        for part in rows.blocks(0, queries):
            assert 3 * len(part) * (int(part[-1]) + 1) <= max(rows_module.TILE, 3 * 16 * 20_000)
            assert len(part) <= rows_module.MOST_ROWS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_half_precision_is_widened_and_float64_kept(dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in made(2, 2, 40))
    found = whole(AttentionRows(Products(q, k, [0, 1], 0.3), 2, 40))
    expected = whole(AttentionRows(Products(q.float(), k.float(), [0, 1], 0.3), 2, 40))
    torch.testing.assert_close(found, expected)


def test_one_row_is_that_of_the_matrix() -> None:
    q, k = made(4, 2, 50)
    rows = AttentionRows(Products(q, k, [0, 1, 0, 1], 0.3), 4, 50, 20)
    torch.testing.assert_close(rows.row(33), whole(rows)[:, 33])
