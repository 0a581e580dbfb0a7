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

from ropewalk.attention.visible import Visible

# Scores of a tile: half a megabyte of float32, so that they never leave a core's own cache.
TILE = 131072
ROWS_FORWARD, ROWS_BACKWARD = (32, 256), (64, 256)
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
        for b, h, g in _heads(q, k):
            keys, values = k[b, g].t(), v[b, g]
            for first, last, begin, end in tiles(visible, ROWS_FORWARD):
                weights = _weights(q[b, h, first:last] * scale, keys, visible, (b, h), first, last, begin, end)
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
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for b, h, g in _heads(q, k):
            keys, values = k[b, g], v[b, g]
            into_keys, into_values = grad_k[b, g], grad_v[b, g]
            for first, last, begin, end in tiles(visible, ROWS_BACKWARD):
                query = q[b, h, first:last] * scale
                weights = _weights(query, keys.t(), visible, (b, h), first, last, begin, end)
                above = gradients[0][b, h, first:last]
                into_values[begin:end].addmm_(weights.t(), above)
                of_weights = above @ values[begin:end].t()
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                torch.mm(of_scores, keys[begin:end], out=grad_q[b, h, first:last])
                into_keys[begin:end].addmm_(of_scores.t(), query)
        return grad_q.mul_(scale), grad_k, grad_v, None, None


def tiles(visible: Visible, rows: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(first query, last, first key, last) of each tile: as many queries as fit `TILE` scores, within `rows`."""
    first = 0
    while first < visible.queries:
        seen = visible.keys if visible.window is None or not visible.causal else visible.window
        height = min(max(TILE // max(seen, 1), rows[0]), rows[1])
        last = min(first + height, visible.queries)
        yield (first, last, *visible.span(first, last))
        first = last


def _weights(
    query: Tensor,
    keys: Tensor,
    visible: Visible,
    head: tuple[int, int],
    first: int,
    last: int,
    begin: int,
    end: int,
) -> Tensor:
    """Softmaxed scores (n, m) of one tile of one head; zeros in a row that sees nothing."""
    scores = query @ keys[:, begin:end]
    if visible.causal:
        _hide_by_order(scores, visible, first, last, begin, end)
    if visible.mask is None:
        return torch.softmax(scores, dim=-1)
    batch, heads = visible.mask.shape[:2]
    part = visible.mask_part(first, last, begin, end)
    assert part is not None
    part = part[head[0] if batch > 1 else 0, head[1] if heads > 1 else 0]
    if part.dtype == torch.bool:
        scores.masked_fill_(~part, -math.inf)
    else:
        scores.add_(part)
    empty = scores.amax(dim=-1, keepdim=True) == -math.inf
    weights = torch.softmax(scores, dim=-1)
    return weights.masked_fill_(empty, 0.0) if bool(empty.any()) else weights


def _hide_by_order(scores: Tensor, visible: Visible, first: int, last: int, begin: int, end: int) -> None:
    """Only the last `last - first` keys of a causal tile can be later than one of its queries."""
    late = max(begin, end - (last - first))
    hidden = visible.hidden(first, last, late, end, scores.device)
    assert hidden is not None
    scores[:, late - begin :].masked_fill_(hidden, -math.inf)
    if visible.window is not None and late > begin:
        gone = visible.hidden(first, last, begin, late, scores.device)
        assert gone is not None
        scores[:, : late - begin].masked_fill_(gone, -math.inf)


def _heads(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int]]:
    """(row of the batch, query head, key head), key heads slowest, so that a group's keys stay in the cache."""
    size = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            yield b, h, h // size
