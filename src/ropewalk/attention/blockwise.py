"""Attention for encodings that change the scores: a block of queries at a time, in training too."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ropewalk.attention import flex
from ropewalk.attention.mask import Visible
from ropewalk.attention.sdpa import attend_vectors
from ropewalk.encodings.base import BiasModule, ScoreModule

# Scores of a block, over all heads and rows of the batch: 32 MB of float32.
BLOCK_SCORES = 8 * 1024 * 1024
LEAST_ROWS = 16

Block = Callable[[int, int], Tensor]


def attend_biased(
    module: BiasModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: tuple[Tensor, Tensor],
    visible: Visible,
    scale: float,
    dropout: float = 0.0,
    is_run: bool = False,
) -> Tensor:
    """softmax(scale q k^T + bias) v for q (B, H, N, D), k (B, G, M, D), v (B, G, M, E): (B, H, N, E).

    `positions` of queries (1 or B, N) and keys (1 or B, M). `is_run` says that both count up by one: then a bias that
    depends on the distance alone is worked out once a distance, not once a pair.
    """
    if 0 in (visible.queries, visible.keys):
        return _nothing(q, v)
    of_queries, of_keys = positions
    table = Distances(module, of_queries, of_keys) if is_run and module.is_relative else None
    if table is not None and flex.takes(q, visible, dropout):
        return flex.attend_flex(q, k, v, visible, scale, table.falling)

    def block(first: int, last: int) -> Tensor:
        begin, end = visible.span(first, last)
        if table is not None:
            bias = table.part(first, last, begin, end)[None]
        else:
            bias = module.bias(of_queries[:, first:last], of_keys[:, begin:end])
        part = Visible(last - first, end - begin, causal=False, mask=_merged(visible, first, last, begin, end, bias))
        return attend_vectors(q[:, :, first:last], k[:, :, begin:end], v[:, :, begin:end], part, scale, dropout)

    return _by_blocks(block, visible, q.shape[0] * q.shape[1], q.shape[2])


def attend_scored(
    module: ScoreModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: tuple[Tensor, Tensor],
    visible: Visible,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(module's scores) v for q (B, H, N, D), k (B, G, M, D), v (B, G, M, E): (B, H, N, E)."""
    if 0 in (visible.queries, visible.keys):
        return _nothing(q, v)
    of_queries, of_keys = positions
    keys = module.keys(k, of_keys, q.shape[1])

    def block(first: int, last: int) -> Tensor:
        begin, end = visible.span(first, last)
        seen, added = _seen(visible, first, last, begin, end, q.device)
        if added is not None:  # -inf hides a key as False does: the module must know
            shown = added != -math.inf
            seen = shown if seen is None else seen & shown
        scores = module.scores(
            q[:, :, first:last],
            tuple(key[:, :, begin:end] for key in keys),
            of_queries[:, first:last],
            of_keys[:, begin:end],
            seen,
            scale,
        )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores if added is None else scores + added
        scores = scores if seen is None else scores.masked_fill(~seen, -math.inf)
        empty = (scores == -math.inf).all(dim=-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0).to(v.dtype)
        weights = torch.dropout(weights, dropout, train=True) if dropout else weights
        grouped = weights.unflatten(1, (v.shape[1], -1)).flatten(2, 3)
        out: Tensor = (grouped @ v[:, :, begin:end]).unflatten(2, (-1, last - first)).flatten(1, 2)
        return out

    return _by_blocks(block, visible, q.shape[0] * q.shape[1], q.shape[2])


class Distances:
    """A bias that depends on the distance alone, for positions that count up by one.

    `falling`, (H, N + M - 1), begins with the furthest distance, the last query's to the first key.
    """

    def __init__(self, module: BiasModule, of_queries: Tensor, of_keys: Tensor):
        queries, keys = of_queries.shape[-1], of_keys.shape[-1]
        # Rows of a batch may start anywhere: it's the same distance in all, as `is_run` means.
        # In int64: a difference of uint8 positions would wrap.
        furthest = of_queries[0, -1].long() - of_keys[0, 0].long()
        steps = torch.arange(queries + keys - 1, device=of_queries.device)
        self.falling = module.by_distance(furthest - steps)  # entry x: the furthest distance less x
        self._queries = queries

    def part(self, first: int, last: int, begin: int, end: int) -> Tensor:
        """The bias (H, n, m) of some queries and keys: entry (i, j) is at N - 1 - i + j of the falling table."""
        start = self._queries - last + begin
        rows = self.falling[:, start : start + (last - first) + (end - begin) - 1].unfold(-1, end - begin, 1)
        return rows.flip(1)


def _nothing(q: Tensor, v: Tensor) -> Tensor:
    """What attention gives without queries or without keys, (B, H, N, E): nothing, or zeros."""
    return q.new_zeros(*q.shape[:3], v.shape[-1])


def _merged(visible: Visible, first: int, last: int, begin: int, end: int, bias: Tensor) -> Tensor:
    """Bias, mask and order in one additive mask (B or 1, H, n, m)."""
    seen, added = _seen(visible, first, last, begin, end, bias.device)
    bias = bias if added is None else bias + added
    return bias if seen is None else bias.masked_fill(~seen, -math.inf)


def _seen(
    visible: Visible, first: int, last: int, begin: int, end: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Which pairs are visible, four axes, and what a mask of numbers adds to their scores."""
    hidden = visible.hidden(first, last, begin, end, device)
    seen = None if hidden is None else ~hidden[None, None]
    mask = visible.mask_part(first, last, begin, end)
    if mask is None or mask.dtype != torch.bool:
        return seen, mask
    return (mask if seen is None else seen & mask), None


def _by_blocks(block: Block, visible: Visible, heads: int, queries: int) -> Tensor:
    """All blocks of queries, in order; with gradients each is computed again on the way back, so none is kept."""
    rows = max(BLOCK_SCORES // max(1, heads * visible.keys), LEAST_ROWS)
    found = []
    for first in range(0, queries, rows):
        last = min(first + rows, queries)
        if torch.is_grad_enabled() and rows < queries:
            found.append(checkpoint(block, first, last, use_reentrant=False))
        else:
            found.append(block(first, last))
    return torch.cat(found, dim=2)
