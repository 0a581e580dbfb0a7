"""Attention on a CPU for queries and keys of another size than values, in tiles that stay in the cache.

torch's kernel wants one size for all three: padding values to 2 d costs 2.0 x the multiplications of RoPE where 1.5 x
are needed, and its general path stores all scores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ropewalk.attention.visible import Visible

# Scores of a tile, two megabytes of float32: larger ones leave the cache, smaller ones make products of few rows.
TILE = 524288
# Queries a tile, at least and at most; in multiples of the least, as products of odd sizes are slow.
ROWS_FORWARD, ROWS_BACKWARD = (32, 128), (32, 128)
# First query, last, first key, last.
Tile = tuple[int, int, int, int]
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
        k, v = k.contiguous(), v.contiguous()
        parts = _ordered(visible, ROWS_FORWARD, q.device)
        room = q.new_empty(_most_scores(parts))
        for b, heads, g in _groups(q, k):
            keys, values = k[b, g].t(), v[b, g]
            for h, (tile, late) in itertools.product(heads, parts):
                first, last, begin, end = tile
                query = q[b, h, first:last] * scale
                weights = _weights(query, keys, visible, (b, h), tile, late, room)
                torch.mm(weights, values[begin:end], out=out[b, h, first:last])
        ctx.save_for_backward(q, k, v)
        ctx.visible, ctx.scale = visible, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The weights are made again tile by tile: nothing of size N x M is kept between the passes."""
        q, k, v = ctx.saved_tensors
        visible, scale = ctx.visible, ctx.scale
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        parts = _ordered(visible, ROWS_BACKWARD, q.device)
        room, more_room = (q.new_empty(_most_scores(parts)) for _ in range(2))
        for b, heads, g in _groups(q, k):
            keys, values = k[b, g], v[b, g]
            # Channels before tokens: products whose result is wide are quicker than those whose result is tall.
            into_keys, into_values = (x.new_zeros(x.shape[1], x.shape[0]) for x in (keys, values))
            for h, (tile, late) in itertools.product(heads, parts):
                first, last, begin, end = tile
                query = q[b, h, first:last] * scale
                weights = _weights(query, keys.t(), visible, (b, h), tile, late, room)
                above = gradients[0][b, h, first:last]
                into_values[:, begin:end].addmm_(above.t(), weights)
                changed = more_room[: weights.numel()].view_as(weights)
                torch.mm(above, values[begin:end].t(), out=changed)
                torch._softmax_backward_data(changed, weights, -1, weights.dtype, grad_input=changed)
                torch.mm(changed, keys[begin:end], out=grad_q[b, h, first:last])
                into_keys[:, begin:end].addmm_(query.t(), changed)
            grad_k[b, g], grad_v[b, g] = into_keys.t(), into_values.t()
        return grad_q.mul_(scale), grad_k, grad_v, None, None


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
    head: tuple[int, int],
    tile: Tile,
    late: Tensor | None,
    room: Tensor,
) -> Tensor:
    """Softmaxed scores (n, m) of one tile of one head, in `room`; zeros in a row that sees nothing."""
    first, last, begin, end = tile
    scores = room[: (last - first) * (end - begin)].view(last - first, end - begin)
    torch.mm(query, keys[:, begin:end], out=scores)
    if late is not None:
        _hide_by_order(scores, visible, tile, late)
    if visible.mask is None:
        return torch.softmax(scores, dim=-1, out=scores)
    batch, heads = visible.mask.shape[:2]
    part = visible.mask_part(first, last, begin, end)
    assert part is not None
    part = part[head[0] if batch > 1 else 0, head[1] if heads > 1 else 0]
    if part.dtype == torch.bool:
        scores.masked_fill_(~part, -math.inf)
    else:
        scores.add_(part)
    empty = scores.amax(dim=-1, keepdim=True) == -math.inf
    weights = torch.softmax(scores, dim=-1, out=scores)
    return weights.masked_fill_(empty, 0.0) if bool(empty.any()) else weights


def _hide_by_order(scores: Tensor, visible: Visible, tile: Tile, late: Tensor) -> None:
    """Only the last `last - first` keys of a causal tile can be later than one of its queries: `late` says which."""
    first, last, begin, end = tile
    width = end - begin - late.shape[1]
    scores[:, width:].masked_fill_(late, -math.inf)
    if visible.window is not None and width:
        gone = visible.hidden(first, last, begin, begin + width, scores.device)
        assert gone is not None
        scores[:, :width].masked_fill_(gone, -math.inf)


def _groups(q: Tensor, k: Tensor) -> Iterator[tuple[int, range, int]]:
    """(row of the batch, query heads, the key head they read)."""
    size = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for g in range(k.shape[1]):
            yield b, range(g * size, (g + 1) * size), g
