"""Who may see what: spans, order and windows block by block against single pairs; masks of any shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.attention import may_see

from ropewalk.attention.mask import Visible, check_mask


@given(
    queries=st.integers(1, 9),
    more=st.integers(0, 9),
    causal=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 20)),
    first=st.integers(0, 8),
    height=st.integers(1, 9),
)
def test_a_block_knows_its_keys(
    queries: int, more: int, causal: bool, window: int | None, first: int, height: int
) -> None:
    keys, window = queries + more, window if causal else None
    visible = Visible(queries, keys, causal, window)
    first = min(first, queries - 1)
    last = min(first + height, queries)
    begin, end = visible.span(first, last)
    assert 0 <= begin < end <= keys
    hidden = visible.hidden(first, last, begin, end, torch.device("cpu"))
    pairs = {(n, m) for n in range(first, last) for m in range(keys) if may_see(n, m, queries, keys, causal, window)}
    found = {
        (n, m)
        for n in range(first, last)
        for m in range(begin, end)
        if hidden is None or not hidden[n - first, m - begin]
    }
    assert found == pairs
    if causal:  # the span is as short as it can be
        assert {begin, end - 1} <= {m for _, m in pairs}
    is_all = len(pairs) == (last - first) * keys
    assert visible.is_plain == (not causal or window is None or window >= keys)
    assert hidden is None or not is_all or not hidden.any()


@given(shape=st.tuples(*[st.booleans()] * 4), first=st.integers(0, 4), begin=st.integers(0, 5))
def test_parts_of_a_mask(shape: tuple[bool, ...], first: int, begin: int) -> None:
    whole = torch.rand([size if is_whole else 1 for size, is_whole in zip((2, 3, 5, 6), shape, strict=True)])
    part = Visible(5, 6, mask=whole).mask_part(first, first + 1, begin, begin + 1)
    assert part is not None
    expected = whole.expand(2, 3, 5, 6)[:, :, first : first + 1, begin : begin + 1]
    assert torch.equal(part.expand(2, 3, 1, 1), expected)
    assert part.numel() <= whole.numel() and Visible(5, 6).mask_part(0, 1, 0, 1) is None


def test_masks_get_four_axes() -> None:
    for shape in ((), (6,), (5, 6), (3, 1, 6), (2, 1, 1, 6)):
        found = check_mask("mask", torch.ones(shape), (2, 3, 5, 6))
        assert found is not None and found.dim() == 4 and found.shape[4 - len(shape) :] == shape
    assert check_mask("mask", None, (2, 3, 5, 6)) is None
