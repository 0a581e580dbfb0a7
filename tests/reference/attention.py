"""Attention once more, slowly: one query at a time in float64, over the keys it may see and no others.

In torch, so that a gradient can be taken through it; rows and keys are gone through one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def may_see(n: int, m: int, queries: int, keys: int, causal: bool, window: int | None) -> bool:
    """The queries are the last of the tokens: query n is token n + keys - queries."""
    if not causal:
        return True
    token = n + keys - queries
    return m <= token and (window is None or m > token - window)


def products(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale q . k, (B, H, N, M); query head h reads key head h // (H // G)."""
    heads, size = q.shape[1], q.shape[1] // k.shape[1]
    return torch.stack([q[:, h].double() @ k[:, h // size].double().transpose(1, 2) * scale for h in range(heads)], 1)


def attention(
    scores: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax of scores (B, H, N, M), plus a mask and a bias of any broadcastable shapes, over values (B, G, M, E)."""
    batch, heads, queries, keys = scores.shape
    size = heads // v.shape[1]
    scores, seen = scores.double(), torch.ones(scores.shape, dtype=torch.bool)
    for added in (mask, bias):
        if added is not None and added.dtype == torch.bool:
            seen = seen & added
        elif added is not None:
            scores = scores + added.double()
            seen = seen & (added != -torch.inf)
    # Taken apart once: a gradient through an index into a whole tensor would fill one as large for each query.
    of_row, of_head = scores.flatten(0, 2).unbind(0), v.double().flatten(0, 1).unbind(0)
    rows = []
    for b in range(batch):
        for h in range(heads):
            for n in range(queries):
                shown_by_mask = seen[b, h, n].tolist()
                visible = [m for m in range(keys) if shown_by_mask[m] and may_see(n, m, queries, keys, causal, window)]
                if not visible:
                    rows.append(v.new_zeros(v.shape[-1], dtype=torch.float64))
                    continue
                shown = of_row[(b * heads + h) * queries + n][visible]
                weights = (shown - shown.max()).exp()
                rows.append((weights / weights.sum()) @ of_head[b * v.shape[1] + h // size][visible])
    if not rows:
        return torch.zeros(batch, heads, queries, v.shape[-1], dtype=torch.float64)
    return torch.stack(rows).reshape(batch, heads, queries, v.shape[-1])
