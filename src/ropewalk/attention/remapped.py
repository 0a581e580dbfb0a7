"""Attention under a remap of positions: each piece of its scores by torch's own kernels, merged by log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ropewalk.attention.blockwise import attend_scored
from ropewalk.attention.contiguous import Prefix, TokenRun, runs, shared_prefix
from ropewalk.attention.mask import Visible, hiding
from ropewalk.attention.merged import Band, Merger, attend_band
from ropewalk.encodings.remap import RemapModule, RemapPart


def attend_remapped(
    module: RemapModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: tuple[Tensor, Tensor],
    visible: Visible,
    scale: float,
    dropout: float = 0.0,
    is_stored: bool = False,
) -> Tensor:
    """softmax(module's scores) v for q (B, H, N, d), k (B, G, M, d), v (B, G, M, E): (B, H, N, E).

    Causal order, with padding on the left and a window if any, over positions that count up by one, takes as many
    multiplications as one causal call of torch's kernel. So do queries that all see the same long prefix, whatever a
    mask says of the keys after it. Anything else, gradients, dropout and torch.compile take the scores block by block
    (`attend_scored`).

    Args:
        positions: of queries (1 or B, N) and keys (1 or B, M).
        is_stored: k is what `module.stored` gave of the keys, not content.
    """
    held = module, q, k, v
    if not dropout and _kernels_serve(q, k, v):
        if (found := runs(visible, *positions, q.shape[0])) is not None:
            into = Merger(q, v.shape[-1])
            for run in found:
                _attend_run(into, *held, run, scale, is_stored)
            return into.output()
        if (prefix := shared_prefix(visible, *positions)) is not None:
            return _attend_after(prefix, *held, positions, visible, scale, is_stored)
    content = _content(module, k, positions[1]) if is_stored else k
    return attend_scored(module, q, content, v, positions, _hiding(visible), scale, dropout)


def _kernels_serve(*tensors: Tensor) -> bool:
    """Whether torch's kernels with a log-sum-exp can be called: they have no gradient, and one dtype for all."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        return False
    # Autocast chooses dtypes inside operations that it knows; it doesn't know these.
    return len({x.dtype for x in tensors}) == 1 and not torch.is_autocast_enabled(tensors[0].device.type)


def _hiding(visible: Visible) -> Visible:
    return visible if visible.mask is None else replace(visible, mask=hiding(visible.mask))


def _attend_after(
    prefix: Prefix,
    module: RemapModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: tuple[Tensor, Tensor],
    visible: Visible,
    scale: float,
    is_stored: bool,
) -> Tensor:
    """Queries that all see the first keys, and of the others what a mask says: (B, H, N, E)."""
    into = Merger(q, v.shape[-1])
    for first, last, position in prefix.queries:
        offset = position - prefix.position
        run = TokenRun((0, q.shape[0]), (first, last), (0, prefix.keys), offset, prefix.position, None)
        _attend_run(into, module, q, k, v, run, scale, is_stored)
    if prefix.keys == k.shape[2]:
        return into.output()
    rest = k[:, :, prefix.keys :], v[:, :, prefix.keys :], positions[1][:, prefix.keys :]
    content = _content(module, rest[0], rest[2]) if is_stored else rest[0]
    seen = prefix.seen[:, prefix.keys :].to(q.device)
    keys = module.keys(content, rest[2], q.shape[1])
    scores = module.scores(q, keys, positions[0], rest[2], seen[None, None], scale)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = (scores - lse.clamp(min=torch.finfo(lse.dtype).min).unsqueeze(-1)).exp().to(v.dtype)
    out = weights.unflatten(1, (v.shape[1], -1)).flatten(2, 3) @ rest[1]
    into.add(0, visible.queries, out.unflatten(2, (-1, visible.queries)).flatten(1, 2), lse)
    return into.output()


def _content(module: RemapModule, k: Tensor, of_keys: Tensor) -> Tensor:
    """Keys without rotation, of those that a cache keeps: turned back, and without the length rule's scale."""
    if module.cached_key is None:
        return k
    turn = module.key_turn(module.cached_key, of_keys.long(), torch.float32)
    cos, sin = turn.tables
    squared = module.rope.attention_scale**2
    return module.rope.rotate(k.float(), cos / squared, -sin / squared).to(k.dtype)


def _attend_run(
    into: Merger,
    module: RemapModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    run: TokenRun,
    scale: float,
    is_stored: bool,
) -> None:
    """Add the attention of one run's queries over its keys, all of them cut here, to `into`."""
    rows, (start, stop) = slice(*run.rows), run.queries
    q = q[rows, :, start:stop]
    k, v = (x[rows, :, run.keys[0] : run.keys[1]] for x in (k, v))
    first = run.position + run.offset
    parts = module.parts(range(first, first + q.shape[2]), range(run.position, run.position + k.shape[2]))
    calls = [call for part in parts if (call := _call(part, run)) is not None]
    queries = _Turned(
        q, [(c.piece, *c.queries) for c in calls], lambda x, n, at: module.query_run(x, n, first + at, k.shape[1])
    )
    key_of = module.key_of_piece
    keys = _Turned(
        k,
        [(key_of[c.piece], *c.keys) for c in calls],
        lambda x, n, at: module.key_run(x, n, run.position + at, is_stored, q.shape[1]),
    )
    room = into.of_rows(*run.rows)
    for piece, (first_query, last_query), (begin, end), band in calls:
        query, key = queries.get(piece, first_query, last_query), keys.get(key_of[piece], begin, end)
        value = v[:, :, begin:end]
        if key.shape[1] != value.shape[1]:  # a key for each query head
            value = value.repeat_interleave(key.shape[1] // value.shape[1], dim=1)
        attend_band(room, band, start + first_query, query, key, value, scale)


class _Call(NamedTuple):
    """A part of the scores cut to the queries and keys that have pairs in it; the band counts from their first."""

    piece: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    band: Band


def _call(part: RemapPart, run: TokenRun) -> _Call | None:
    """A part as one band, cut by the run's window; None where no pair is left."""
    furthest = part.furthest
    if run.window is not None:
        furthest = run.window if furthest is None else min(furthest, run.window)
    if part.nearest is not None and furthest is not None and furthest <= part.nearest:
        return None
    (first, last), (begin, end) = part.queries, part.keys
    whole = Band(last - first, end - begin, run.offset + first - begin, part.nearest, furthest)
    first_row, last_row, first_key, last_key = whole.touched()
    if first_row == last_row or first_key >= last_key:
        return None
    band = Band(
        last_row - first_row, last_key - first_key, whole.offset + first_row - first_key, part.nearest, furthest
    )
    return _Call(part.piece, (first + first_row, first + last_row), (begin + first_key, begin + last_key), band)


class _Turned:
    """Queries or keys as the pieces compare them: each number turned once, for all tokens that any call wants."""

    def __init__(self, x: Tensor, wanted: Sequence[tuple[int, int, int]], turn: Callable[[Tensor, int, int], Tensor]):
        self._x, self._turn = x, turn
        self._spans: dict[int, tuple[int, int]] = {}
        self._made: dict[int, Tensor] = {}
        for number, first, last in wanted:
            held = self._spans.get(number, (first, last))
            self._spans[number] = min(first, held[0]), max(last, held[1])

    def get(self, number: int, first: int, last: int) -> Tensor:
        """Tokens first..last-1 as `number` has them."""
        start, end = self._spans[number]
        if number not in self._made:
            self._made[number] = self._turn(self._x[:, :, start:end], number, start)
        return self._made[number][:, :, first - start : last - start]
