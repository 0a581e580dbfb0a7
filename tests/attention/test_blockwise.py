"""Biases and scores of their own, a block of queries at a time: blocks, table of distances, dropout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attention.cases import HEADS, D, case, close, encoding, gradients, small_blocks

from ropewalk.attention import attend, remapped
from ropewalk.attention import blockwise as scored
from ropewalk.attention.blockwise import Distances, attend_biased
from ropewalk.attention.mask import Visible
from ropewalk.encodings.base import BiasModule

BIASES = ["alibi", "t5", "kerple"]  # those that depend on the distance alone


def module_of(kind: str) -> BiasModule:
    config = encoding(kind, 1)
    assert config is not None
    module = config.module()
    assert isinstance(module, BiasModule)
    return module


@given(
    kind=st.sampled_from(BIASES),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    starts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    cut=st.tuples(st.integers(0, 8), st.integers(1, 9), st.integers(0, 8), st.integers(1, 9)),
)
def test_a_table_of_distances_is_the_bias(
    kind: str, queries: int, keys: int, starts: tuple[int, int], cut: tuple[int, int, int, int]
) -> None:
    module = module_of(kind)
    of_queries = torch.arange(queries)[None] + starts[0]
    of_keys = torch.arange(keys)[None] + starts[1]
    first, begin = min(cut[0], queries - 1), min(cut[2], keys - 1)
    last, end = min(first + cut[1], queries), min(begin + cut[3], keys)
    part = Distances(module, of_queries, of_keys).part(first, last, begin, end)
    expected = module.bias(of_queries[:, first:last], of_keys[:, begin:end])
    close(part, expected[0])


@pytest.mark.parametrize("kind", BIASES)
def test_with_the_table_and_without(kind: str) -> None:
    made = case(kind, 5, 8, window=4, dtype=torch.float64, grad=True)
    assert isinstance(made.module, BiasModule)
    wanted = [made.q, made.k, made.v, *made.module.parameters()]
    found = []
    for is_run in (True, False):
        with small_blocks():
            positions = made.of_queries[None], made.of_keys[None]
            visible = Visible(5, 8, window=4)
            out = attend_biased(made.module, made.q, made.k, made.v, positions, visible, 0.3, is_run=is_run)
        found.append([out, *gradients(out, wanted)])
    for ours, plain in zip(*found, strict=True):
        close(ours, plain)


def test_the_table_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For positions that count up; others ask for the bias of each block's pairs."""
    asked: list[tuple[int, ...]] = []
    module = module_of("kerple")
    by_distance = module.by_distance
    monkeypatch.setattr(module, "by_distance", lambda x: (asked.append(tuple(x.shape)), by_distance(x))[1])
    q, k = torch.randn(2, HEADS, 6, D), torch.randn(2, 1, 6, D)
    with small_blocks(), torch.no_grad():
        attend(q, k, k, module)
        attend(q, k, k, module, torch.arange(6).expand(2, 6) + 5)
        assert asked == [(11,), (11,)]
        attend(q, k, k, module, torch.stack((torch.arange(6), torch.arange(6) * 2)))
    assert asked[2:] == [(2, 2, 2), (2, 2, 4), (2, 2, 6)]


@pytest.mark.parametrize("kind", ["kerple", "fire", "dape", "dape_v2", "self_extend"])
class TestBlocks:
    def test_as_many_queries_as_fit(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """24 queries x 24 keys, 4 heads, 2 rows of the batch: 5 rows of 192 scores fit 1000."""
        sizes: list[tuple[int, int]] = []
        span = Visible.span

        def spied(self: Visible, first: int, last: int) -> tuple[int, int]:
            sizes.append((first, last))
            return span(self, first, last)

        made = case(kind, 24, 24)
        monkeypatch.setattr(remapped, "runs", lambda *_: None)  # by which a remap in causal order needs no blocks
        monkeypatch.setattr(scored, "LEAST_ROWS", 2)
        monkeypatch.setattr(scored, "BLOCK_SCORES", 1000)
        whole = made.expected()
        monkeypatch.setattr(Visible, "span", spied)
        with torch.no_grad():
            close(made.attended(), whole)
        # an inner kernel asks about a block's own queries, from 0
        assert [s for s in dict.fromkeys(sizes) if s != (0, 4)] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 24)]

    def test_gradients_with_dropout_are_those_of_the_output(self, kind: str) -> None:
        """A block is computed again on the way back: it must drop the same weights again."""
        made = case(kind, 9, 9, dtype=torch.float64, grad=True)
        step = 1e-5

        def loss(v: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(5)
            with small_blocks():
                return attend(made.q, made.k, v, made.module, dropout=0.4).pow(3).sum()

        total = loss(made.v)
        torch.manual_seed(77)  # what happens between the passes
        torch.rand(3)
        (grad,) = torch.autograd.grad(total, made.v)
        for index in ((0, 0, 2, 1), (1, 1, 7, 0)):
            shift = torch.zeros_like(made.v)
            shift[index] = step
            with torch.no_grad():
                slope = (loss(made.v + shift) - loss(made.v - shift)) / (2 * step)
            assert grad[index].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)
