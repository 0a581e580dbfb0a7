"""Attention on a CPU for queries and keys of another size than values, in tiles that stay in the cache.

torch's kernel wants one size for all three: padding values to 2 d costs 2.0 x the multiplications of RoPE where 1.5 x
are needed, and its general path stores all scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ropewalk.attention.mask import Visible

# Scores of a tile, two megabytes of float32 for each thread: smaller ones make many small products.
TILE = 524288
# Queries a tile, at least and at most; in multiples of the least, as products of odd sizes are slow.
ROWS_FORWARD, ROWS_BACKWARD = (32, 256), (32, 256)
# First query, last, first key, last.
Tile = tuple[int, int, int, int]
# Heads at once at most: each takes a tile of its own.
MOST_HEADS = 16
# Below, torch's kernel on padded values is quicker than many small products.
LEAST_KEYS = 512


def takes(q: Tensor, v: Tensor, visible: Visible, dropout: float) -> bool:
    """Whether this kernel is the one for the case."""
    is_cpu = q.device.type == "cpu" and q.dtype == v.dtype and q.dtype in (torch.float32, torch.float64)
    learns_mask = visible.mask is not None and visible.mask.requires_grad
    is_worth_it = visible.keys >= LEAST_KEYS and q.shape[-1] != v.shape[-1]
    # torch.compile takes the whole attention as one operation of torch's own instead; autocast chooses its dtype.
    is_left_alone = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    return is_cpu and is_worth_it and dropout == 0.0 and not learns_mask and is_left_alone


class Unequal(torch.autograd.Function):
    """softmax(scale q k^T) v with its gradient; q (B, H, N, D), k (B, G, M, D), v (B, G, M, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Visible, scale: float) -> Tensor:
        """(B, H, N, E); a query that sees nothing gets zeros."""
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        queries, into, every_key, every_value = (x.flatten(0, 1) for x in (q, out, k, v))
        parts = _ordered(visible, ROWS_FORWARD, q.device)
        room = q.new_empty(_most_scores(parts) * together(q))
        for heads, read in _batches(q, k):
            keys, values = every_key[read].transpose(1, 2), every_value[read]
            for tile, late in parts:
                first, last, begin, end = tile
                query = queries[heads, first:last] * scale
                weights = _weights(query, keys, visible, (heads, q.shape[1]), tile, late, room)
                torch.bmm(weights, values[:, begin:end], out=into[heads, first:last])
        ctx.save_for_backward(q, k, v)
        ctx.visible, ctx.scale = visible, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The weights are made again tile by tile: nothing of size N x M is kept between the passes."""
        q, k, v = ctx.saved_tensors
        visible, scale = ctx.visible, ctx.scale
        queries, aboves, every_key, every_value = (x.flatten(0, 1) for x in (q, gradients[0], k, v))
        grad_q = torch.empty_like(queries)
        grad_k, grad_v = torch.zeros_like(every_key), torch.zeros_like(every_value)
        parts = _ordered(visible, ROWS_BACKWARD, q.device)
        room, more_room = (q.new_empty(_most_scores(parts) * together(q)) for _ in range(2))
        for heads, read in _batches(q, k):
            keys, values = every_key[read], every_value[read]
            # Channels before tokens: products whose result is wide are quicker than those whose result is tall.
            into_keys, into_values = (x.new_zeros(x.shape[0], x.shape[2], x.shape[1]) for x in (keys, values))
            for tile, late in parts:
                first, last, begin, end = tile
                query = queries[heads, first:last] * scale
                weights = _weights(query, keys.transpose(1, 2), visible, (heads, q.shape[1]), tile, late, room)
                above = aboves[heads, first:last]
                into_values[:, :, begin:end].baddbmm_(above.transpose(1, 2), weights)
                changed = more_room[: weights.numel()].view_as(weights)
                torch.bmm(above, values[:, begin:end].transpose(1, 2), out=changed)
                torch._softmax_backward_data(changed, weights, -1, weights.dtype, grad_input=changed)
                torch.bmm(changed, keys[:, begin:end], out=grad_q[heads, first:last])
                into_keys[:, :, begin:end].baddbmm_(query.transpose(1, 2), changed)
            for into, found in ((grad_k, into_keys), (grad_v, into_values)):
                if isinstance(read, slice):
                    into[read] = found.transpose(1, 2)
                else:
                    into.index_add_(0, read, found.transpose(1, 2))
        return grad_q.mul_(scale).view_as(q), grad_k.view_as(k), grad_v.view_as(v), None, None


def together(q: Tensor) -> int:
    """How many heads are worked on at once: one a thread, as products of one head share their threads badly."""
    return min(torch.get_num_threads(), MOST_HEADS, q.shape[0] * q.shape[1])


def _batches(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice | Tensor]]:
    """Heads of all rows, some at a time, and which key heads they read: the same ones, or a list of them."""
    total, size = q.shape[0] * q.shape[1], q.shape[1] // k.shape[1]
    for first in range(0, total, together(q)):
        heads = slice(first, min(first + together(q), total))
        # Query head h of row b is head b H + h of all, and reads key head (b H + h) // (H // G) of all.
        yield heads, heads if size == 1 else torch.arange(heads.start, heads.stop, device=q.device) // size


def tiles(visible: Visible, rows: tuple[int, int]) -> list[Tile]:
    """All tiles, in order: as many queries as fit `TILE` scores, within `rows`."""
    found, first = [], 0
    while first < visible.queries:
        begin, end = visible.span(first, first + 1)
        height = TILE // (end - begin) // rows[0] * rows[0]
        last = min(first + min(max(height, rows[0]), rows[1]), visible.queries)
        found.append((first, last, *visible.span(first, last)))
        first = last
    return found


def _ordered(visible: Visible, rows: tuple[int, int], device: torch.device) -> list[tuple[Tile, Tensor | None]]:
    """Each tile, and what causal order hides of its last keys: the same for all heads, so made once."""
    found = []
    for first, last, begin, end in tiles(visible, rows):
        late = visible.hidden(first, last, max(begin, end - (last - first)), end, device)
        found.append(((first, last, begin, end), late))
    return found


def _most_scores(parts: list[tuple[Tile, Tensor | None]]) -> int:
    """The scores of the largest tile."""
    return max(((last - first) * (end - begin) for (first, last, begin, end), _ in parts), default=0)


def _weights(
    query: Tensor,
    keys: Tensor,
    visible: Visible,
    heads: tuple[slice, int],
    tile: Tile,
    late: Tensor | None,
    room: Tensor,
) -> Tensor:
    """Softmaxed scores (P, n, m) of one tile of P heads, in `room`; zeros in a row that sees nothing."""
    first, last, begin, end = tile
    shape = (query.shape[0], last - first, end - begin)
    scores = room[: math.prod(shape)].view(shape)
    torch.bmm(query, keys[:, :, begin:end], out=scores)
    if late is not None:
        _hide_by_order(scores, visible, tile, late)
    part = _mask_part(visible, heads, tile)
    if part is None:
        return torch.softmax(scores, dim=-1, out=scores)
    if part.dtype == torch.bool:
        scores.masked_fill_(~part, -math.inf)
    else:
        scores.add_(part)
    empty = scores.amax(dim=-1, keepdim=True) == -math.inf
    weights = torch.softmax(scores, dim=-1, out=scores)
    return weights.masked_fill_(empty, 0.0) if bool(empty.any()) else weights


def _mask_part(visible: Visible, heads: tuple[slice, int], tile: Tile) -> Tensor | None:
    """The mask of one tile of some heads, counted over all rows: (P or 1, n, m); axes of size 1 stay so."""
    part = visible.mask_part(*tile)
    if part is None:
        return None
    chosen, per_row = heads
    of_all = torch.arange(chosen.start, chosen.stop, device=part.device)
    row = of_all // per_row if part.shape[0] > 1 else torch.zeros_like(of_all)
    head = of_all % per_row if part.shape[1] > 1 else torch.zeros_like(of_all)
    return part[0] if part.shape[0] == part.shape[1] == 1 else part[row, head]


def _hide_by_order(scores: Tensor, visible: Visible, tile: Tile, late: Tensor) -> None:
    """Only the last `last - first` keys of a causal tile can be later than one of its queries: `late` says which."""
    first, last, begin, end = tile
    width = end - begin - late.shape[1]
    scores[..., width:].masked_fill_(late, -math.inf)
    if visible.window is not None and width:
        gone = visible.hidden(first, last, begin, begin + width, scores.device)
        assert gone is not None
        scores[..., :width].masked_fill_(gone, -math.inf)
