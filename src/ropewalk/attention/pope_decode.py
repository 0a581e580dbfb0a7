"""Decoding with PoPE: the phases go to the query's side, so that nothing of size 2d is made for all past keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ropewalk.attention.mask import Visible
from ropewalk.encodings.base import Tables
from ropewalk.encodings.pope import PoPEModule

# Keys at a time at most, and their numbers over all heads: four megabytes of float32, which a shared cache holds.
CHUNK, CHUNK_NUMBERS = 2048, 1048576
# With more queries at once, encoding the keys costs less than it saves.
MOST_QUERIES = 4


def attend_folded(
    module: PoPEModule,
    q: Tensor,
    stored: Tensor,
    v: Tensor,
    of_queries: Tensor,
    tables: Tables,
    visible: Visible,
    scale: float,
) -> Tensor:
    """Attention of a few queries q (B, H, N, d) over what a cache keeps of the keys (B, G, M, d): (B, H, N, E).

    score = sum_c mu_k,c (a_c cos(s theta_c) + b_c sin(s theta_c)) with a and b of `PoPEModule.fold` (the equation 8 of
    PoPE, its cosine taken apart). Queries are at positions (1 or B, N); `tables` are the keys', (1 or B, M, width).
    """
    module.check_heads(stored)
    width, groups = module.encoding.width, stored.shape[1]
    a, b = (_rows(x, groups) for x in module.fold(q, of_queries))
    cos, sin = (table.unsqueeze(1) for table in tables)
    rest = _rows(q[..., width:], groups)
    dtype = torch.promote_types(stored.dtype, torch.float32)
    most = max(min(CHUNK, CHUNK_NUMBERS // max(stored.shape[0] * groups * width, 1)), 1)
    size = math.ceil(stored.shape[2] / math.ceil(stored.shape[2] / most))
    found = []
    for keys, c, s in zip(*(x.split(size, dim=2) for x in (stored, cos, sin)), strict=True):
        part = _scores(a, b, keys[..., :width], c, s).to(dtype)
        found.append(part + rest @ keys[..., width:].transpose(2, 3) if rest.shape[-1] else part)
    by_row = torch.cat(found, dim=-1).unflatten(2, (-1, q.shape[2])).flatten(1, 2) * scale
    weights = _softmax(by_row, visible).to(v.dtype)
    out: Tensor = _rows(weights, groups) @ v
    by_head: Tensor = out.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    return by_head


def _scores(a: Tensor, b: Tensor, mu: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """sum_c mu_c (a_c cos + b_c sin): (B, G, r, n) for a, b (B, G, r, c), mu (B, G, n, c), tables (1 or B, 1, n, c)."""
    if a.shape[2] == 1:
        # One reader a key: what it reads with, worked out key by key, takes fewer passes than two products.
        turned = (a * cos.to(a.dtype)).addcmul_(b, sin.to(a.dtype))
        return turned.mul_(mu).sum(dim=-1).unsqueeze(2)
    a, b, cos, sin = (x.to(mu.dtype) for x in (a, b, cos, sin))
    found: Tensor = a @ (mu * cos).transpose(2, 3)
    return found + b @ (mu * sin).transpose(2, 3)


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
