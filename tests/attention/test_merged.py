"""Attention from several calls over disjoint keys: the blocks of a band, one call with its sum, and the merger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attention.cases import close
from tests.reference import attention as reference
from torch import Tensor

from ropewalk.attention import merged
from ropewalk.attention.merged import Band, Merger, attend_band, call

SCALE = 0.3
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@contextmanager
def sizes(least_band: int, rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "LEAST_BAND", least_band)
        patch.setattr(merged, "ROWS", rows)
        yield


@st.composite
def bands(draw: st.DrawFn) -> Band:
    nearest = draw(st.none() | st.integers(0, 20))
    furthest = draw(st.none() | st.integers(1, 20).map(lambda width: (nearest or 0) + width))
    return Band(draw(st.integers(1, 30)), draw(st.integers(1, 40)), draw(st.integers(-20, 45)), nearest, furthest)


def pairs(band: Band) -> Tensor:
    """Which pairs the band holds, from its definition: (N, M)."""
    distance = torch.arange(band.queries)[:, None] + band.offset - torch.arange(band.keys)
    least = -math.inf if band.nearest is None else band.nearest
    most = math.inf if band.furthest is None else band.furthest
    return (distance >= least) & (distance < most)


def inputs(
    queries: int, keys: int, heads: int = 6, groups: int = 2, size: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with heads of 8 channels and values of `size`, in a batch of 2."""
    shapes = (2, heads, queries, 8), (2, groups, keys, 8), (2, groups, keys, size)
    q, k, v = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output and natural log-sum-exp in float64."""
    scores = reference.products(q, k, SCALE)
    scores = scores if seen is None else scores.masked_fill(~seen, -math.inf)
    return reference.attention(scores, v, causal=False, mask=seen), torch.logsumexp(scores, dim=-1)


class TestBand:
    @settings(max_examples=150)
    @given(band=bands(), least=st.sampled_from([1, 5, 256]), rows=st.sampled_from([1, 3, 256]))
    def test_every_pair_is_in_exactly_one_block(self, band: Band, least: int, rows: int) -> None:
        count = torch.zeros(band.queries, band.keys, dtype=torch.int64)
        with sizes(least, rows):
            blocks = list(band.blocks())
        for block in blocks:
            assert 0 <= block.first < block.last <= band.queries and 0 <= block.begin < block.end <= band.keys
            ones = torch.ones(block.last - block.first, block.end - block.begin, dtype=torch.int64)
            if block.kind in ("causal", "anticausal"):
                assert ones.shape[0] == ones.shape[1]
                ones = ones.tril() if block.kind == "causal" else ones.triu()
            elif block.kind == "masked":
                assert block.last - block.first <= rows
                ones = (~band.hidden(block, torch.device("cpu"))).long()
                assert ones.any(dim=1).all()  # a softmax over nothing is not a number
            else:
                assert block.kind == "all"
            count[block.first : block.last, block.begin : block.end] += ones
        assert torch.equal(count, pairs(band).long())

    @given(band=bands())
    def test_touched_is_the_smallest_rectangle(self, band: Band) -> None:
        seen = pairs(band)
        rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
        first_row, last_row, first_key, last_key = band.touched()
        if not len(rows):
            assert first_row == last_row or first_key >= last_key
        else:
            assert (first_row, last_row) == (int(rows[0]), int(rows[-1]) + 1)
            assert (first_key, last_key) == (int(columns[0]), int(columns[-1]) + 1)

    def test_wide_bands_take_squares_and_narrow_ones_masks(self) -> None:
        band = Band(1024, 1024, 0, 0, 256)
        assert {block.kind for block in band.blocks()} == {"causal", "anticausal"}
        assert {block.kind for block in band._replace(furthest=255).blocks()} == {"masked"}
        assert {block.kind for block in band._replace(furthest=None).blocks()} == {"causal"}

    @given(band=bands(), least=st.sampled_from([1, 5, 256]), at=st.integers(0, 3), seed=st.integers(0, 99))
    def test_attention_over_a_band(self, band: Band, least: int, at: int, seed: int) -> None:
        """`into` may have more queries than the band; those get zeros."""
        torch.manual_seed(seed)
        q, k, v = inputs(band.queries, band.keys)
        into = Merger(torch.empty(2, 6, band.queries + at + 1, 8), 8)
        with sizes(least, 7):
            attend_band(into, band, at, q, k, v, SCALE)
        out, own = into.output(), pairs(band)
        close(out[:, :, at:-1], expected(q, k, v, own)[0])
        assert not out[:, :, :at].any() and not out[:, :, -1:].any()


class TestCall:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", [8, 3, 12])
    @pytest.mark.parametrize("groups", [1, 2, 6])
    @pytest.mark.parametrize("kind", ["all", "causal", "mask"])
    def test_equals_float64(self, kind: str, groups: int, size: int, dtype: torch.dtype) -> None:
        queries, keys = (21, 21) if kind == "causal" else (21, 34)
        q, k, v = inputs(queries, keys, 6, groups, size, dtype)
        seen = torch.ones(queries, keys, dtype=torch.bool)
        if kind == "causal":
            seen = seen.tril()
        elif kind == "mask":
            seen = (torch.rand(queries, keys) < 0.5) | (torch.arange(keys) == 3)
        mask = torch.zeros(queries, keys, dtype=dtype).masked_fill(~seen, -math.inf) if kind == "mask" else None
        out, lse = call(q, k, v, SCALE, causal=kind == "causal", mask=mask)
        true_out, true_lse = expected(q, k, v, seen)
        assert out.dtype == dtype and out.shape == (2, 6, queries, size)
        assert lse.dtype == torch.promote_types(dtype, torch.float32) and lse.shape == (2, 6, queries)
        close(out, true_out, DTYPES[dtype])
        # sums of float32 products even where the inputs have fewer bits, of which the kernel's exp keeps some 14
        close(lse, true_lse, {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-4}[dtype])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", ["all", "causal", "mask"])
    @pytest.mark.parametrize("rows", [4, 256])
    def test_plain_products_equal_the_kernel(self, rows: int, kind: str, dtype: torch.dtype) -> None:
        q, k, v = inputs(21, 21, 3, 3, 8, dtype)
        mask = torch.randn(21, 21, dtype=dtype) if kind == "mask" else None
        with sizes(256, rows):
            plain = merged._by_rows(q, k, v, SCALE, kind == "causal", mask)
        kernel = merged._kernel(q, k, v, SCALE, kind == "causal", mask)
        assert [x.dtype for x in plain] == [x.dtype for x in kernel]
        close(plain[0], kernel[0], DTYPES[dtype])
        close(plain[1], kernel[1], DTYPES[dtype])

    def test_keys_of_a_group_are_read_once_and_never_copied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Queries of a group that all see the same keys are one longer list; others share a view of them."""
        told: list[tuple[Tensor, Tensor]] = []
        kernel = merged._kernel
        monkeypatch.setattr(merged, "_kernel", lambda q, k, *rest: (told.append((q, k)), kernel(q, k, *rest))[1])
        q, k, v = inputs(5, 5, 6, 2)
        for causal in (False, True):
            call(q, k, v, SCALE, causal=causal)
        assert [(tuple(q.shape), tuple(k.shape)) for q, k in told] == [
            ((4, 1, 15, 8), (4, 1, 5, 8)),
            ((4, 3, 5, 8), (4, 3, 5, 8)),
        ]
        assert all(seen.data_ptr() == k.data_ptr() for _, seen in told) and told[1][1].stride(1) == 0


class TestMerger:
    @given(
        cuts=st.lists(st.integers(0, 17), max_size=4),
        order=st.randoms(use_true_random=False),
        dtype=st.sampled_from(sorted(DTYPES, key=str)),
    )
    def test_any_parts_in_any_order_give_the_whole(self, cuts: list[int], order: object, dtype: torch.dtype) -> None:
        q, k, v = inputs(5, 17, dtype=dtype)
        edges = sorted({0, 17, *cuts})
        parts = list(itertools.pairwise(edges))
        order.shuffle(parts)  # type: ignore[attr-defined]
        into = Merger(q, v.shape[-1])
        for begin, end in parts:
            into.add(0, 5, *call(q, k[:, :, begin:end], v[:, :, begin:end], SCALE))
        assert into.output().dtype == dtype
        close(into.output(), expected(q, k, v)[0], DTYPES[dtype])

    def test_parts_of_very_different_size(self) -> None:
        """exp of either sum alone is infinite, or 0."""
        into = Merger(torch.empty(1, 1, 1, 2), 2)
        for value, lse in ((1.0, -200.0), (2.0, 300.0), (4.0, 300.0), (8.0, -500.0)):
            into.add(0, 1, torch.full((1, 1, 1, 2), value), torch.full((1, 1, 1), lse))
        close(into.output(), torch.full((1, 1, 1, 2), 3.0))

    def test_a_query_without_keys_gets_zeros(self) -> None:
        q, k, v = inputs(6, 6)
        into = Merger(q, 8)
        into.add(2, 4, *call(q[:, :, 2:4], k, v, SCALE))
        nothing = torch.zeros(2, 6, 4, 8), torch.full((2, 6, 4), -math.inf)
        into.add(0, 4, *nothing)  # before and after other keys
        into.add(0, 4, *nothing)
        close(into.output()[:, :, 2:4], expected(q[:, :, 2:4], k, v)[0])
        assert not into.output()[:, :, :2].any() and not into.output()[:, :, 4:].any()
        into.add(0, 2, *call(q[:, :, :2], k, v, SCALE))  # what came of no keys weighs nothing
        close(into.output()[:, :, :2], expected(q[:, :, :2], k, v)[0])

    def test_sums_of_half_precision_are_kept_in_float32(self) -> None:
        """Near 1000 bfloat16 steps by 4: rounded sums would weigh two equal parts by e^2 or more."""
        into = Merger(torch.empty(1, 1, 1, 1, dtype=torch.bfloat16), 1)
        for value, lse in ((1.0, 1002.0), (3.0, 1003.0)):
            into.add(0, 1, torch.full((1, 1, 1, 1), value, dtype=torch.bfloat16), torch.full((1, 1, 1), lse))
        found = into.output()
        assert found.dtype == torch.bfloat16
        assert found.item() == pytest.approx((1 + 3 * math.e) / (1 + math.e), rel=4e-3)

    def test_rows_of_a_batch_are_added_where_they_stand(self) -> None:
        q, k, v = inputs(4, 9)
        whole, apart = Merger(q, 8), Merger(q, 8)
        whole.add(0, 4, *call(q, k, v, SCALE))
        for row in (1, 0):
            rows = slice(row, row + 1)
            apart.of_rows(row, row + 1).add(0, 4, *call(q[rows], k[rows], v[rows], SCALE))
        close(apart.output(), whole.output())
