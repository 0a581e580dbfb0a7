"""Attention of encoded queries and keys: the kernel for each case."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ropewalk.attention import flex
from ropewalk.attention.mask import Visible
from ropewalk.attention.tiled_cpu import Unequal, takes

# Queries a block where a mask must be made: the mask takes a block times all keys.
BLOCK = 256


def attend_vectors(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scale: float, dropout: float = 0.0) -> Tensor:
    """softmax(scale q k^T) v for q (B, H, N, D), k (B, G, M, D) and v (B, G, M, E): (B, H, N, E).

    D and E may differ. No matrix of all scores is kept, forward or backward, but with dropout on a CPU, for which
    torch has no such kernel. A query that may see no key gets zeros.
    """
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    if takes(q, v, visible, dropout):
        attended: Tensor = Unequal.apply(q, k, v, visible, scale)  # type: ignore[no-untyped-call]
        return attended
    if visible.is_plain and (not visible.causal or visible.queries in (1, visible.keys)):
        # One query that is the last token sees all keys.
        causal = visible.causal and visible.queries > 1
        return _sdpa(q, k, v, scale, dropout, is_causal=causal)
    if visible.causal and flex.takes(q, visible, dropout):
        return flex.attend_flex(q, k, v, visible, scale)
    found = []
    for first in range(0, visible.queries, BLOCK):
        last = min(first + BLOCK, visible.queries)
        begin, end = visible.span(first, last)
        mask, empty = _block_mask(visible, first, last, begin, end, q)
        part = _sdpa(q[:, :, first:last], k[:, :, begin:end], v[:, :, begin:end], scale, dropout, attn_mask=mask)
        found.append(part if empty is None else part.masked_fill(empty, 0.0))
    return torch.cat(found, dim=2) if found else q.new_zeros(*q.shape[:3], v.shape[-1])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, **how: Any) -> Tensor:
    """torch's own attention; sizes of q and v that its CPU kernel can't take apart are made equal with zeros."""
    width, size = q.shape[-1], v.shape[-1]
    if q.device.type == "cpu" and width != size:
        q, k = (F.pad(x, (0, max(0, size - width))) for x in (q, k))
        v = F.pad(v, (0, max(0, width - size)))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale, enable_gqa=grouped, **how)
    return out[..., :size]


def _block_mask(
    visible: Visible, first: int, last: int, begin: int, end: int, q: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What torch's attention takes as a mask, and which queries see nothing, (·, ·, n, 1).

    Those see all keys in the mask, as a softmax over nothing is not a number; their output is zeroed afterwards.
    """
    hidden = visible.hidden(first, last, begin, end, q.device)
    mask = visible.mask_part(first, last, begin, end)
    if mask is not None and mask.dtype != torch.bool:
        added = mask.to(q.dtype)
        added = added if hidden is None else added.masked_fill(hidden, -math.inf)
        empty = (added == -math.inf).all(dim=-1, keepdim=True)
        return added.masked_fill(empty, 0.0), empty
    if hidden is None and mask is None:
        return None, None
    seen = mask if hidden is None else (~hidden if mask is None else mask & ~hidden)
    assert seen is not None
    empty = ~seen.any(dim=-1, keepdim=True)
    return seen | empty, empty
