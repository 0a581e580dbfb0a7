"""The kernel for queries and keys of another size than values: the naive formula over many tiles, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.attention.cases import close, gradients, small_blocks
from tests.reference import attention as reference

from ropewalk.attention import tiled_cpu as unequal
from ropewalk.attention.mask import Visible
from ropewalk.attention.sdpa import attend_vectors
from ropewalk.attention.tiled_cpu import ROWS_BACKWARD, ROWS_FORWARD, Unequal, takes, tiles

WIDE, SIZE = 6, 4


def content(
    queries: int, keys: int, heads: int = 2, groups: int = 1, batch: int = 1, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    shapes = (batch, heads, queries, WIDE), (batch, groups, keys, WIDE), (batch, groups, keys, SIZE)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def naive(qkv: list[torch.Tensor], visible: Visible, scale: float) -> torch.Tensor:
    q, k, v = qkv
    return reference.attention(reference.products(q, k, scale), v, visible.causal, visible.window, visible.mask)


def compare(qkv: list[torch.Tensor], visible: Visible, tolerance: float = 1e-8, scale: float = 0.7) -> None:
    ours = attended(qkv, visible, scale)
    expected = naive(qkv, visible, scale)
    close(ours, expected, tolerance)
    for found, wanted in zip(gradients(ours, qkv), gradients(expected, qkv), strict=True):
        close(found, wanted, tolerance)


def attended(qkv: list[torch.Tensor], visible: Visible, scale: float = 0.7) -> torch.Tensor:
    found: torch.Tensor = Unequal.apply(*qkv, visible, scale)  # type: ignore[no-untyped-call]
    return found


class TestItsOwnTiles:
    """With the sizes it really works in: above LEAST_KEYS keys, so that queries need several tiles."""

    @pytest.mark.parametrize(("queries", "window"), [(600, None), (600, 300), (300, None), (300, 1)])
    def test_causal(self, queries: int, window: int | None) -> None:
        visible = Visible(queries, 600, window=window)
        assert len([*tiles(visible, ROWS_FORWARD)]) > 1
        compare(content(queries, 600), visible)

    def test_masks(self) -> None:
        # heads differ in one, rows of the batch in the other, and some rows see nothing
        by_head = torch.rand(1, 2, 300, 600) < 0.3
        by_head[0, 1, 100:170] = False
        compare(content(300, 600), Visible(300, 600, causal=False, mask=by_head))
        by_row = torch.randn(2, 1, 1, 520)
        by_row[1, :, :, :500] = -torch.inf
        compare(content(520, 520, batch=2), Visible(520, 520, mask=by_row))

    def test_float32(self) -> None:
        compare(content(530, 530, dtype=torch.float32), Visible(530, 530), 2e-5)


@given(
    queries=st.integers(1, 14),
    more=st.integers(0, 9),
    causal=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 20)),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    mask=st.sampled_from(["none", "bool", "float"]),
    seed=st.integers(0, 999),
)
def test_small_tiles(
    queries: int, more: int, causal: bool, window: int | None, heads: tuple[int, int], mask: str, seed: int
) -> None:
    torch.manual_seed(seed)
    keys = queries + more
    shape = [2, heads[0], queries, keys]
    shown = None
    if mask != "none":
        shown = torch.rand([size if torch.rand(()) < 0.6 else 1 for size in shape]) < 0.6
        shown = shown if mask == "bool" else torch.randn(shown.shape).masked_fill(~shown, -torch.inf)
    visible = Visible(queries, keys, causal, window if causal else None, shown)
    with small_blocks():
        compare(content(queries, keys, *heads, batch=2), visible)


@given(queries=st.integers(0, 999), more=st.integers(0, 999), window=st.one_of(st.none(), st.integers(1, 2000)))
def test_tiles_cover_each_query_once_and_every_key_it_sees(queries: int, more: int, window: int | None) -> None:
    visible, expected = Visible(queries, queries + more, window=window), 0
    for rows in (ROWS_FORWARD, ROWS_BACKWARD):
        expected = 0
        for first, last, begin, end in tiles(visible, rows):
            assert first == expected < last and 0 <= begin < end <= visible.keys
            assert begin <= max(0, first + more + 1 - (window or visible.keys)) and end >= last + more
            assert (last - first) * (end - begin) <= max(2 * unequal.TILE, 2 * rows[0] * visible.keys)
            expected = last
        assert expected == queries


def test_gradients_as_torch_checks_them() -> None:
    visible = Visible(5, 7, window=4, mask=torch.rand(1, 2, 1, 7) < 0.8)
    with small_blocks():
        assert torch.autograd.gradcheck(lambda *qkv: attended([*qkv], visible), content(5, 7))


def test_strided_and_expanded_tensors() -> None:
    """As models hand them over: heads after tokens, one key for many, a gradient that is one number."""
    q = torch.randn(1, 9, 2, WIDE, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 1, 1, WIDE, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 9, 1, SIZE, dtype=torch.float64, requires_grad=True)
    inside = [q.transpose(1, 2), k.expand(1, 1, 9, WIDE), v.transpose(1, 2)]
    with small_blocks():
        out = attended(inside, Visible(9, 9))
    expected = naive(inside, Visible(9, 9), 0.7)
    assert out.is_contiguous()
    for found, wanted in zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (out, expected)), strict=True):
        close(found, wanted, 1e-8)
    close(out, expected, 1e-8)


def test_a_number_that_is_none_is_shown() -> None:
    """Zeros for a row that sees nothing must not hide a NaN elsewhere."""
    q, k, v = (x.detach() for x in content(5, 5))
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[1] = False
    q[:, :, 3] = torch.nan
    out = attended([q, k, v], Visible(5, 5, mask=mask[None, None]))
    assert out[:, :, 1].eq(0).all() and out[:, :, 3].isnan().all() and out[:, :, [0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_long_unequal_attention_takes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    apply = Unequal.apply
    monkeypatch.setattr(Unequal, "apply", lambda *arguments: asked.append(1) or apply(*arguments))  # type: ignore[func-returns-value]
    for keys, taken in ((unequal.LEAST_KEYS - 1, 0), (unequal.LEAST_KEYS, 1)):
        q, k, v = content(3, keys, dtype=dtype)
        close(attend_vectors(q, k, v, Visible(3, keys), 0.7), naive([q, k, v], Visible(3, keys), 0.7))
        assert len(asked) == taken


def test_what_it_leaves_to_others() -> None:
    q, _, v = content(3, 600)
    wide = v[..., :1].expand(1, 1, 600, WIDE)
    learned = torch.zeros(1, 1, 1, 600, requires_grad=True)
    assert takes(q, v, Visible(3, 600), 0.0)
    assert not takes(q, wide, Visible(3, 600), 0.0)
    assert not takes(q, v, Visible(3, 600), 0.1)
    assert not takes(q, v, Visible(3, 600, mask=learned), 0.0)
    assert not takes(q.bfloat16(), v.bfloat16(), Visible(3, 600), 0.0)
    assert not takes(q.to("meta"), v.to("meta"), Visible(3, 600), 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes(q, v, Visible(3, 600), 0.0)
