"""Decoding with PoPE: the phases go to the query's side, so that nothing of size 2d is made for all past keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ropewalk.attention.visible import Visible
from ropewalk.encodings.base import Tables
from ropewalk.encodings.pope import PoPEModule

# Keys at a time: their phases for all heads of a layer stay in a core's cache.
CHUNK = 256
# With more queries at once, encoding the keys costs less than it saves.
MOST_QUERIES = 4


def attend_folded(
    module: PoPEModule,
    q: Tensor,
    stored: Tensor,
    v: Tensor,
    tables: tuple[Tables, Tables],
    visible: Visible,
    scale: float,
) -> Tensor:
    """Attention of a few queries q (B, H, N, d) over what a cache keeps of the keys (B, G, M, d): (B, H, N, E).

    score = sum_c mu_k,c (a_c cos(s theta_c) + b_c sin(s theta_c)) with a and b of `PoPEModule.fold` (the equation 8 of
    PoPE, its cosine taken apart). `tables` of the queries' and the keys' positions, (1 or B, ·, width).
    """
    module.check_heads(stored)
    width, groups = module.encoding.width, stored.shape[1]
    a, b = (_rows(x, groups).transpose(2, 3).to(stored.dtype) for x in module.fold(q, tables[0]))
    cos, sin = (table.to(stored.dtype).unsqueeze(1) for table in tables[1])
    rows, rest = a.shape[-1], _rows(q[..., width:], groups).transpose(2, 3)
    scores = stored.new_empty(*stored.shape[:3], rows)
    for begin in range(0, stored.shape[2], CHUNK):
        part = slice(begin, begin + CHUNK)
        mu = stored[:, :, part, :width]
        found = (mu * cos[:, :, part]) @ a
        found += (mu * sin[:, :, part]) @ b
        if rest.shape[2]:
            found += stored[:, :, part, width:] @ rest
        scores[:, :, part] = found
    by_row = scores.transpose(2, 3).unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    by_row = by_row.to(torch.promote_types(by_row.dtype, torch.float32)) * scale
    weights = _softmax(by_row, visible).to(v.dtype)
    out: Tensor = _rows(weights, groups) @ v
    by_head: Tensor = out.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    return by_head


def _rows(x: Tensor, groups: int) -> Tensor:
    """(B, H, N, r) with the query heads of a group one after the other: (B, G, H / G * N, r)."""
    rows: Tensor = x.unflatten(1, (groups, -1)).flatten(2, 3)
    return rows


def _softmax(scores: Tensor, visible: Visible) -> Tensor:
    """Of scores (B, H, N, M), after order and mask; a row that sees nothing gets zeros."""
    queries, keys = scores.shape[-2:]
    hidden = visible.hidden(0, queries, 0, keys, scores.device) if queries > 1 or visible.window else None
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    if visible.mask is not None:
        mask = visible.mask
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        empty = scores.amax(dim=-1, keepdim=True) == -math.inf
        return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    return torch.softmax(scores, dim=-1)
