"""Rows of a batch whose visible tokens stand side by side and count up by one: what needs no mask."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ropewalk.attention.mask import Visible
from ropewalk.encodings.base import is_run

# Queries a block while a mask is looked through.
_ROWS = 256
# With fewer shared keys all scores at once cost as little.
LEAST_PREFIX = 512


class TokenRun(NamedTuple):
    """Some rows of a batch in which the same queries see the same keys, in causal order and perhaps a window.

    rows: first row of the batch, last (excluded).
    queries: first that sees a key, last (excluded); those before are padding.
    keys: first key, last (excluded).
    offset: the index, counted from the first key, of the key at the first query's own position.
    position: of the first key; both sides count up by one from there.
    window: each query sees the last so many keys; None for all.
    """

    rows: tuple[int, int]
    queries: tuple[int, int]
    keys: tuple[int, int]
    offset: int
    position: int
    window: int | None


class Prefix(NamedTuple):
    """The first keys, at consecutive positions, seen by all queries, which come after them.

    keys: how many. position: of the first. queries: (first, last (excluded), position of the first) for queries at
    consecutive positions. seen: which keys each query sees, (N, M).
    """

    keys: int
    position: int
    queries: tuple[tuple[int, int, int], ...]
    seen: Tensor


class _Shape(NamedTuple):
    """What a mask says of one row: the first query with keys, the keys' range, the first query's own key, a window."""

    query: int
    begin: int
    end: int
    own: int
    window: int | None


# By mask: a model hands one mask to all of its layers.
_looked_through: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def runs(visible: Visible, of_queries: Tensor, of_keys: Tensor, rows: int) -> tuple[TokenRun, ...] | None:
    """The batch as runs, one for each row, or one for all where rows agree; None where a mask is needed.

    Args:
        visible: order, window and mask; the mask may be the model's own, in which the dtype's lowest number hides.
        of_queries, of_keys: positions (1 or B, N) and (1 or B, M).
        rows: B, of the batch.
    """
    if torch.compiler.is_compiling() or 0 in (visible.queries, visible.keys):
        return None
    mask = visible.mask
    if mask is not None and (mask.dim() != 4 or mask.shape[1] != 1 or mask.requires_grad):
        return None
    shapes = _shapes(visible)
    if shapes is None:
        return None
    # On an accelerator this waits for the device, a small price for a prefill without a mask.
    of_queries, of_keys = of_queries.cpu(), of_keys.cpu()
    batch = max(of_queries.shape[0], of_keys.shape[0], len(shapes))
    found: list[TokenRun] = []
    for row in range(batch):
        shape = shapes[row if len(shapes) > 1 else 0]
        of_query, of_key = (p[row if len(p) > 1 else 0] for p in (of_queries, of_keys))
        position = _position(shape, of_query, of_key)
        if position is None:
            return None
        queries, keys = (shape.query, visible.queries), (shape.begin, shape.end)
        run = TokenRun((row, row + 1), queries, keys, shape.own - shape.begin, position, shape.window)
        if found and found[-1][1:] == run[1:]:
            run = run._replace(rows=(found.pop().rows[0], row + 1))
        found.append(run)
    if batch == 1:  # one mask and one row of positions may serve a larger batch
        found = [run._replace(rows=(0, rows)) for run in found]
    return tuple(found)


def shared_prefix(visible: Visible, of_queries: Tensor, of_keys: Tensor) -> Prefix | None:
    """The first keys that all queries see; None where they are few, or rows of a batch differ."""
    mask = visible.mask
    if torch.compiler.is_compiling() or mask is None or len(of_queries) > 1 or len(of_keys) > 1:
        return None
    if mask.requires_grad or mask.dim() != 4 or mask.shape[:2] != (1, 1) or visible.queries > _ROWS * 4:
        return None
    seen = _seen(visible, 0, 0, visible.queries)
    if seen is None:
        return None
    of_queries, of_keys = of_queries[0].long().cpu(), of_keys[0].long().cpu()
    by_all = seen.all(dim=0).cpu() & (of_keys - of_keys[0] == torch.arange(visible.keys))
    keys = int(by_all.long().cumprod(dim=0).sum())
    if keys < LEAST_PREFIX or int(of_queries.min()) < int(of_keys[keys - 1]):
        return None
    cuts = (of_queries.diff() != 1).nonzero().flatten() + 1
    edges = [0, *cuts.tolist(), visible.queries]
    spans = tuple((first, last, int(of_queries[first])) for first, last in itertools.pairwise(edges))
    return Prefix(keys, int(of_keys[0]), spans, seen)


def _position(shape: _Shape, of_queries: Tensor, of_keys: Tensor) -> int | None:
    """The position of the first key, if positions count up by one and agree with the order of the tokens."""
    queries, keys = of_queries[None, shape.query :], of_keys[None, shape.begin : shape.end]
    if not is_run(queries, keys):
        return None
    first = int(keys[0, 0])
    return first if int(queries[0, 0]) == first + shape.own - shape.begin else None


def _shapes(visible: Visible) -> tuple[_Shape, ...] | None:
    """What each row of the mask says, (1 or B); None for a mask that hides more than order, padding and a window."""
    if visible.mask is None:
        if not visible.causal and visible.queries > 1:
            return None
        if visible.queries > visible.keys:
            return None
        own = visible.keys - visible.queries
        return (_Shape(0, 0, visible.keys, own, visible.window),)
    if visible.mask.is_inference():  # nothing tells whether such a mask has been changed since
        return _all_shapes(visible)
    known = _looked_through.setdefault(visible.mask, {})
    key = visible.mask._version, visible.queries, visible.keys, visible.causal, visible.window
    if key not in known:
        known.clear()
        known[key] = _all_shapes(visible)
    held: tuple[_Shape, ...] | None = known[key]
    return held


def _all_shapes(visible: Visible) -> tuple[_Shape, ...] | None:
    assert visible.mask is not None
    rows: list[_Shape] = []
    for row in range(visible.mask.shape[0]):
        shape = _shape(visible, row)
        if shape is None:
            return None
        rows.append(shape)
    return tuple(rows)


def _shape(visible: Visible, row: int) -> _Shape | None:
    """What the mask says of one row, if that is causal order with padding on the left and perhaps a window."""
    newest = _seen(visible, row, visible.queries - 1, visible.queries)
    if newest is None or not bool(newest.any()):
        return None
    ends = newest[0].nonzero()
    begin, end = int(ends[0]), int(ends[-1]) + 1
    shift = end - visible.queries  # a query's own key is `shift` after its index
    query = _first_seeing(visible, row, shift)
    if query is None:
        return None
    first = _seen(visible, row, query, query + 1)
    assert first is not None
    start = int(first[0].nonzero()[0])
    window = None if begin == start else end - begin
    own = query + shift
    shape = _Shape(query, start, end, own, window)
    return shape if _holds(visible, row, shape, shift) else None


def _seen(visible: Visible, row: int, first: int, last: int) -> Tensor | None:
    """Which keys the queries first..last-1 of a row see, (n, M); None if some scores are only changed."""
    mask = visible.mask
    assert mask is not None
    part = mask[row, 0] if mask.shape[-2] == 1 else mask[row, 0, first:last]
    if part.dtype != torch.bool:
        is_hidden = part <= torch.finfo(part.dtype).min / 2
        if not bool((is_hidden | (part == 0)).all()):
            return None
        part = ~is_hidden
    seen = part.expand(last - first, visible.keys)
    hidden = visible.hidden(first, last, 0, visible.keys, seen.device)
    return seen if hidden is None else seen & ~hidden


def _first_seeing(visible: Visible, row: int, shift: int) -> int | None:
    """The first query that sees its own key: those before are padding."""
    for first in range(max(0, -shift), visible.queries, _ROWS):
        last = min(first + _ROWS, visible.queries)
        seen = _seen(visible, row, first, last)
        if seen is None:
            return None
        own = seen.diagonal(offset=first + shift)
        if bool(own.any()):
            return first + int(own.nonzero()[0])
    return None


def _holds(visible: Visible, row: int, shape: _Shape, shift: int) -> bool:
    """Whether the mask says nothing else: those before the first query see no key at all."""
    for first in range(0, visible.queries, _ROWS):
        last = min(first + _ROWS, visible.queries)
        seen = _seen(visible, row, first, last)
        if seen is None:
            return False
        of_keys = torch.arange(visible.keys, device=seen.device)
        own = torch.arange(first, last, device=seen.device)[:, None] + shift
        expected = (of_keys <= own) & (of_keys >= shape.begin)
        if shape.window is not None:
            expected &= of_keys > own - shape.window
        expected[: max(0, shape.query - first)] = False
        if not torch.equal(seen, expected):
            return False
    return True
