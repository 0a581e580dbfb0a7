"""What needs no mask: order, left padding, windows and free room are recognised, and nothing else is taken for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from ropewalk.attention import contiguous as module
from ropewalk.attention.contiguous import TokenRun, runs
from ropewalk.attention.mask import Visible

FORMS = ("bool", "lowest", "-inf")


def formed(seen: Tensor, form: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A mask as models give it: True where seen, or 0 there and a number that hides elsewhere."""
    if form == "bool":
        return seen
    low = torch.finfo(dtype).min if form == "lowest" else -torch.inf
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, low)


def causal(queries: int, keys: int, pads: tuple[int, ...] = (0,), window: int | None = None, room: int = 0) -> Tensor:
    """Causal order of the last queries among keys, padding on the left of each row, free keys on the right."""
    of_queries, of_keys = torch.arange(keys - queries, keys)[:, None], torch.arange(keys + room)
    seen = of_keys <= of_queries
    if window is not None:
        seen = seen & (of_keys > of_queries - window)
    return torch.stack([seen & (of_keys >= pad) for pad in pads])[:, None]


def counted(queries: int, keys: int, pads: tuple[int, ...] = (0,), room: int = 0, start: int = 0) -> tuple[Any, Any]:
    """Positions from each row's first token on, as `generate` makes them; free room keeps whatever was there."""
    of_keys = torch.stack([(torch.arange(keys) - pad + start).clamp(min=0) for pad in pads])
    free = torch.zeros(len(pads), room, dtype=torch.long)
    return of_keys[:, keys - queries :], torch.cat([of_keys, free], dim=1)


def seen_by(found: tuple[TokenRun, ...], rows: int, queries: int, keys: int) -> Tensor:
    """The mask that runs stand for, from their definition: (B, 1, N, M)."""
    seen = torch.zeros(rows, 1, queries, keys, dtype=torch.bool)
    for run in found:
        for n in range(*run.queries):
            own = run.keys[0] + run.offset + n - run.queries[0]
            begin = run.keys[0] if run.window is None else max(run.keys[0], own - run.window + 1)
            seen[run.rows[0] : run.rows[1], :, n, begin : min(own + 1, run.keys[1])] = True
    return seen


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes of a batch with left padding, perhaps a window and free room."""
    keys = draw(st.integers(1, 20))
    pads = draw(st.lists(st.integers(0, keys - 1), min_size=1, max_size=3))
    return {
        "queries": draw(st.integers(1, keys)),
        "keys": keys,
        "pads": tuple(pads),
        "window": draw(st.none() | st.integers(1, 21)),
        "room": draw(st.sampled_from([0, 0, 1, 7])),
    }


class TestRecognised:
    @given(queries=st.integers(1, 9), more=st.integers(0, 9), window=st.none() | st.integers(1, 9))
    def test_no_mask(self, queries: int, more: int, window: int | None) -> None:
        keys = queries + more
        of_queries, of_keys = counted(queries, keys, start=5)
        found = runs(Visible(queries, keys, window=window), of_queries, of_keys, 4)
        assert found == (TokenRun((0, 4), (0, queries), (0, keys), more, 5, window),)

    def test_one_query_may_come_without_order(self) -> None:
        of_queries, of_keys = counted(1, 7)
        assert runs(Visible(1, 7, causal=False), of_queries, of_keys, 2) == (
            TokenRun((0, 2), (0, 1), (0, 7), 6, 0, None),
        )
        assert runs(Visible(2, 7, causal=False), *counted(2, 7), 2) is None

    @given(layout=layouts(), form=st.sampled_from(FORMS), rows=st.sampled_from([1, 3, 256]), is_causal=st.booleans())
    def test_padding_windows_and_free_room(self, layout: dict[str, Any], form: str, rows: int, is_causal: bool) -> None:
        room, pads, queries = layout["room"], layout["pads"], layout["queries"]
        assume(not (room and is_causal))  # with `causal` the queries are the last of all keys
        keys = layout["keys"] + room
        mask = causal(**layout)
        visible = Visible(queries, keys, is_causal, layout["window"] if is_causal else None, formed(mask, form))
        of_queries, of_keys = counted(queries, layout["keys"], pads, room)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_ROWS", rows)
            found = runs(visible, of_queries, of_keys, len(pads))
        assert found is not None
        assert torch.equal(seen_by(found, len(pads), queries, keys), mask)
        assert [row for run in found for row in range(*run.rows)] == list(range(len(pads)))
        for run in found:
            for row in range(*run.rows):
                assert run.position == int(of_keys[row, run.keys[0]])

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_left_padding(self, form: str, dtype: torch.dtype) -> None:
        mask = formed(causal(6, 6, (2, 0)), form, dtype)
        found = runs(Visible(6, 6, causal=False, mask=mask), *counted(6, 6, (2, 0)), 2)
        assert found == (
            TokenRun((0, 1), (2, 6), (2, 6), 0, 0, None),
            TokenRun((1, 2), (0, 6), (0, 6), 0, 0, None),
        )
        padding = (torch.arange(6) >= torch.tensor([[2], [0]]))[:, None, None]  # one row for all queries
        assert runs(Visible(6, 6, mask=formed(padding, form, dtype)), *counted(6, 6, (2, 0)), 2) == found

    def test_a_static_cache_with_free_room_and_a_window(self) -> None:
        mask = causal(3, 8, (1,), room=4)
        assert runs(Visible(3, 12, causal=False, mask=mask), *counted(3, 8, (1,), room=4), 1) == (
            TokenRun((0, 1), (0, 3), (1, 8), 4, 0, None),
        )
        mask = causal(3, 8, (1,), window=4, room=4)
        assert runs(Visible(3, 12, causal=False, mask=mask), *counted(3, 8, (1,), room=4), 1) == (
            TokenRun((0, 1), (0, 3), (2, 8), 3, 1, 4),
        )

    def test_rows_that_agree_are_one_run(self) -> None:
        pads = (1, 1, 0, 0, 0, 1)
        mask = causal(4, 6, pads)
        found = runs(Visible(4, 6, causal=False, mask=mask), *counted(4, 6, pads), 6)
        assert found is not None and [run.rows for run in found] == [(0, 2), (2, 5), (5, 6)]
        one = runs(Visible(4, 6, causal=False, mask=mask[:1]), *(p[:1] for p in counted(4, 6, pads)), 6)
        assert one is not None and [run.rows for run in one] == [(0, 6)]

    def test_rows_that_start_at_other_positions(self) -> None:
        of_keys = torch.arange(5) + torch.tensor([[0], [0], [9]])
        found = runs(Visible(2, 5), of_keys[:, 3:], of_keys, 3)
        assert found is not None
        assert [(run.rows, run.position) for run in found] == [((0, 2), 0), ((2, 3), 9)]

    def test_a_mask_is_looked_through_once_for_all_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        shape = module._shape
        monkeypatch.setattr(module, "_shape", lambda visible, row: (calls.append(row), shape(visible, row))[1])
        mask, positions = causal(4, 6, (1, 0)), counted(4, 6, (1, 0))
        found = [runs(Visible(4, 6, causal=False, mask=mask), *positions, 2) for _ in range(5)]
        assert calls == [0, 1] and len(set(found)) == 1 and found[0] is not None
        runs(Visible(4, 6, causal=False, mask=mask.clone()), *positions, 2)
        assert calls == [0, 1, 0, 1]
        runs(Visible(4, 6, window=2, mask=mask), *positions, 2)  # the same mask read in another way
        assert len(calls) == 6
        nothing = torch.rand(1, 1, 4, 6) < 0.5
        assert [runs(Visible(4, 6, causal=False, mask=nothing), *counted(4, 6), 2) for _ in range(3)] == [None] * 3
        assert len(calls) == 7

    def test_a_mask_that_was_changed_is_looked_through_again(self) -> None:
        mask = causal(4, 6)
        assert runs(Visible(4, 6, causal=False, mask=mask), *counted(4, 6), 1) is not None
        mask[0, 0, 2, 1] = False
        assert runs(Visible(4, 6, causal=False, mask=mask), *counted(4, 6), 1) is None

    def test_masks_are_not_kept(self) -> None:
        mask = causal(4, 6)
        runs(Visible(4, 6, causal=False, mask=mask), *counted(4, 6), 1)
        held = len(module._looked_through)
        del mask
        assert len(module._looked_through) < held


class TestNotRecognised:
    @example(queries=2, more=4, pad=0, at=(0, 4), form="bool")
    @given(
        queries=st.integers(1, 6),
        more=st.integers(0, 6),
        pad=st.integers(0, 2),
        at=st.tuples(st.integers(0, 5), st.integers(0, 11)),
        form=st.sampled_from(FORMS),
    )
    def test_another_pair_hidden_or_shown(
        self, queries: int, more: int, pad: int, at: tuple[int, int], form: str
    ) -> None:
        """Whatever is changed in a mask: what comes back stands for that mask, or it's None."""
        keys = queries + more
        assume(pad < keys)
        mask = causal(queries, keys, (pad,))
        n, m = at[0] % queries, at[1] % keys
        mask[0, 0, n, m] = ~mask[0, 0, n, m]
        visible = Visible(queries, keys, causal=False, mask=formed(mask, form))
        found = runs(visible, *counted(queries, keys, (pad,)), 1)
        if found is not None:
            assert torch.equal(seen_by(found, 1, queries, keys), mask)

    @example(seen=[True, False, False, True, True, True], queries=2)
    @given(seen=st.lists(st.booleans(), min_size=12, max_size=12), queries=st.sampled_from([2, 3, 4]))
    def test_any_mask_at_all(self, seen: list[bool], queries: int) -> None:
        mask, keys = torch.tensor(seen).reshape(1, 1, queries, -1), len(seen) // queries
        of_keys = torch.arange(keys)[None]
        for of_queries in (torch.arange(queries)[None] + first for first in range(-2, 5)):
            found = runs(Visible(queries, keys, causal=False, mask=mask), of_queries, of_keys, 1)
            if found is not None:
                assert torch.equal(seen_by(found, 1, queries, keys), mask)

    def test_a_hole_between_two_seen_keys(self) -> None:
        for n in range(6):
            for m in range(1, n):
                mask = causal(6, 6)
                mask[0, 0, n, m] = False
                assert runs(Visible(6, 6, causal=False, mask=mask), *counted(6, 6), 1) is None

    @pytest.mark.parametrize("change", [(0, 1), (3, 2), (5, 0)])
    def test_positions_that_do_not_count_up(self, change: tuple[int, int]) -> None:
        of_keys = torch.arange(6)[None].clone()
        of_keys[0, change[0]] = change[1]
        for mask in (None, causal(6, 6)):
            assert runs(Visible(6, 6, mask=mask), of_keys, of_keys, 1) is None

    def test_queries_that_do_not_stand_at_their_keys_positions(self) -> None:
        of_queries, of_keys = counted(2, 6)
        assert runs(Visible(2, 6), of_queries + 1, of_keys, 1) is None
        assert runs(Visible(2, 6), torch.tensor([[4, 6]]), of_keys, 1) is None

    def test_one_row_that_needs_a_mask(self) -> None:
        mask = causal(6, 6, (0, 0))
        mask[1, 0, 4, 2] = False
        assert runs(Visible(6, 6, causal=False, mask=mask), *counted(6, 6, (0, 0)), 2) is None

    def test_packed_documents(self) -> None:
        owners = torch.tensor([0, 0, 0, 1, 1, 2])
        mask = (causal(6, 6)[0, 0] & (owners[:, None] == owners))[None, None]
        positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
        assert runs(Visible(6, 6, causal=False, mask=mask), positions, positions, 1) is None
        assert runs(Visible(6, 6, causal=False, mask=mask), *counted(6, 6), 1) is None
        assert runs(Visible(6, 6), positions, positions, 1) is None  # order alone doesn't part them

    @pytest.mark.parametrize("value", [0.5, -3.0, -1e9])
    def test_numbers_that_change_scores(self, value: float) -> None:
        for n, m in ((0, 0), (4, 3), (5, 5), (2, 4)):
            mask = formed(causal(6, 6), "lowest")
            mask[0, 0, n, m] = value
            assert runs(Visible(6, 6, causal=False, mask=mask), *counted(6, 6), 1) is None

    def test_a_mask_for_each_head_or_one_that_learns(self) -> None:
        positions = counted(6, 6)
        mask = causal(6, 6)
        assert runs(Visible(6, 6, causal=False, mask=mask.expand(1, 2, 6, 6)), *positions, 1) is None
        learns = formed(mask, "lowest").requires_grad_()
        assert runs(Visible(6, 6, causal=False, mask=learns), *positions, 1) is None

    def test_nothing_to_see(self) -> None:
        none = torch.arange(0)[None]
        assert runs(Visible(0, 3), none, torch.arange(3)[None], 1) is None
        assert runs(Visible(3, 0, causal=False), torch.arange(3)[None], none, 1) is None
        blank = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
        assert runs(Visible(3, 3, mask=blank), *counted(3, 3), 1) is None
