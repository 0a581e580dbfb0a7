from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.analysis.test_attention_rows import made, whole
from tests.reference import inspection as oracle

from ropewalk.analysis.attention_rows import (
    BINS,
    AttentionRows,
    Products,
    by_place,
    check_first_tokens,
    column_mass,
    counted_queries,
    sink_figures,
)
from ropewalk.errors import ArgumentError


@pytest.mark.parametrize("window", [None, 30, 5])
def test_sinks_are_those_of_the_whole_matrix(window: int | None) -> None:
    q, k = made(4, 2, 150)
    k[:, 3] += 3 * q.mean((0, 1))  # a token that everybody looks at
    rows = AttentionRows(Products(q, k, [0, 0, 1, 1], 0.5), 4, 150, window)
    matrix = whole(rows).double().numpy()
    found = sink_figures(column_mass(rows, counted_queries(150)), 4)
    for head in range(4):
        expected = oracle.sinks(matrix[head], 4)
        for name in ("first", "few", "largest"):
            assert float(found[name][head]) == pytest.approx(expected[name], abs=1e-6), name
        if expected["largest"] > 0:  # within so short a window every token is recent
            assert int(found["largest_at"][head]) == expected["largest_at"]


@given(number=st.integers(65, 400), sample=st.integers(1, 400))
def test_a_sample_is_evenly_spread_and_has_the_last_token(number: int, sample: int) -> None:
    found = counted_queries(number, sample)
    assert len(found) == min(sample, number - 64)
    assert int(found[0]) >= 64 and int(found[-1]) == number - 1
    if len(found) > 1:
        steps = found.diff()
        assert int(steps.min()) >= 1 and int(steps.max() - steps.min()) <= 1


def test_a_sample_of_the_queries_is_their_mean() -> None:
    q, k = made(2, 1, 200)
    rows = AttentionRows(Products(q, k, [0, 0], 0.5), 2, 200)
    queries = counted_queries(200, 7)
    mass = column_mass(rows, queries)
    matrix = whole(rows)[:, queries]
    recent = torch.arange(200) > queries[:, None] - 16
    torch.testing.assert_close(mass, matrix.masked_fill(recent, 0).mean(1))
    assert mass.sum(-1).max() <= 1


def test_places_are_summed_and_nothing_is_lost() -> None:
    mass = torch.rand(3, 1000)
    found = by_place(mass)
    assert found.shape == (3, BINS)
    torch.testing.assert_close(found.sum(-1), mass.sum(-1))
    torch.testing.assert_close(found[:, 0], mass[:, :4].sum(-1))
    assert torch.equal(by_place(mass[:, :100]), mass[:, :100])


def test_short_texts_and_wrong_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="more than 64"):
        counted_queries(64)
    with pytest.raises(ArgumentError, match="queries=0"):
        counted_queries(100, 0)
    for wrong in (0, 50, True, 2.5):
        with pytest.raises(ArgumentError, match="first_tokens"):
            check_first_tokens(wrong)  # type: ignore[arg-type]
    check_first_tokens(49)
