"""Attention from several calls over disjoint keys, merged by their log-sum-exp.

A call gives its output O_p and l_p, the natural logarithm of the sum of exp(score) over its keys. Attention over all
keys is sum_p exp(l_p - l) O_p with l = log sum_p exp(l_p): exact, in any order. Each call is one of torch's attention
kernels, so a remap of positions costs the multiplications of one causal call and no matrix of scores.

The calls have no gradient: the kernels' backward passes don't take one for l_p.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bands narrower than this many keys are attended to with a mask: their triangles are too small for a call each.
LEAST_BAND = 256
# In place of the logarithm of 0, where no key has been seen: -inf less -inf is not a number.
_LEAST = -1e30
# Queries a block where scores are masked or kept.
ROWS = 256


class BandBlock(NamedTuple):
    """One call: queries first..last-1 and keys begin..end-1 of a band.

    kind: `all` sees every pair; `causal` is square and query i sees keys 0 to i; `anticausal` is square and query i
    sees keys i to the last; `masked` sees what the band says.
    """

    kind: str
    first: int
    last: int
    begin: int
    end: int


class Band(NamedTuple):
    """Of N queries and M keys the pairs with nearest <= i + offset - j < furthest; None is no limit.

    `offset` is the index of the key at query 0's own position.
    """

    queries: int
    keys: int
    offset: int
    nearest: int | None
    furthest: int | None

    def blocks(self) -> Iterator[BandBlock]:
        """The band's pairs, each in exactly one block."""
        if self.queries == 1:
            yield from self._all(0, 1, *self.seen(0, 1))
        elif self.nearest is None and self.furthest is None:
            yield from self._all(0, self.queries, 0, self.keys)
        elif self.nearest is None or (self.furthest is not None and self.furthest - self.nearest < LEAST_BAND):
            yield from self._masked(0, self.queries)
        elif self.furthest is None:
            yield from self._triangle(self.nearest)
        else:
            yield from self._strip(self.nearest, self.furthest)

    def touched(self) -> tuple[int, int, int, int]:
        """First query that sees a key, last (excluded), first key that one sees, last (excluded)."""
        first = 0 if self.nearest is None else max(0, self.nearest - self.offset)
        last = self.queries if self.furthest is None else min(self.queries, self.keys + self.furthest - self.offset - 1)
        return (first, last, *self.seen(first, last)) if first < last and self.keys else (0, 0, 0, 0)

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """The range of keys that any of the queries first..last-1 may see."""
        begin = 0 if self.furthest is None else first + self.offset - self.furthest + 1
        end = self.keys if self.nearest is None else last + self.offset - self.nearest
        return max(begin, 0), min(end, self.keys)

    def hidden(self, block: BandBlock, device: torch.device) -> Tensor:
        """True for the pairs of a block that the band doesn't hold: (queries, keys)."""
        rows = torch.arange(block.first, block.last, device=device)[:, None] + self.offset
        distance = rows - torch.arange(block.begin, block.end, device=device)
        outside = torch.zeros_like(distance, dtype=torch.bool)
        if self.nearest is not None:
            outside |= distance < self.nearest
        if self.furthest is not None:
            outside |= distance >= self.furthest
        return outside

    def _all(self, first: int, last: int, begin: int, end: int) -> Iterator[BandBlock]:
        if first < last and begin < end:
            yield BandBlock("all", first, last, begin, end)

    def _triangle(self, nearest: int) -> Iterator[BandBlock]:
        """No furthest key: a rectangle, a square triangle, and queries past the last key that see all of them."""
        shift = self.offset - nearest
        first = min(max(0, -shift), self.queries)
        last = max(first, min(self.queries, self.keys - shift))
        if first < last:
            yield from self._all(first, last, 0, first + shift)
            yield BandBlock("causal", first, last, first + shift, last + shift)
        yield from self._all(last, self.queries, 0, self.keys)

    def _strip(self, nearest: int, furthest: int) -> Iterator[BandBlock]:
        """Both limits: squares as wide as the band along the diagonal, each cut into two triangles.

        Squares begin where a multiple of the band's width is reached, so that the first keys cut none in two.
        """
        width, shift = furthest - nearest, self.offset - nearest
        first = min(max(0, -shift), self.queries)
        while first < self.queries:
            last = min(first + width - (first + shift) % width, self.queries)
            gone = last + self.offset - furthest  # the first key that all of these queries see
            if last + shift > self.keys:
                yield from self._masked(first, last)
            else:
                if gone > 0 and last - first > 1:
                    yield BandBlock("anticausal", first, last - 1, gone - (last - first) + 1, gone)
                yield from self._all(first, last, max(gone, 0), first + shift)
                yield BandBlock("causal", first, last, first + shift, last + shift)
            first = last

    def _masked(self, first: int, last: int) -> Iterator[BandBlock]:
        # Queries that see no key are in no block: a softmax over nothing is not a number.
        touched = self.touched()
        first, last = max(first, touched[0]), min(last, touched[1])
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            yield BandBlock("masked", start, stop, *self.seen(start, stop))


class Merger:
    """Gathers the outputs of calls for queries (B, H, N): `add` each, then `output`."""

    def __init__(self, q: Tensor, channels: int):
        wide = torch.promote_types(q.dtype, torch.float32)
        self._dtype = q.dtype
        self._out = q.new_zeros(*q.shape[:3], channels, dtype=wide)
        self._lse = q.new_full(q.shape[:3], -math.inf, dtype=wide)
        self._added: list[bool] = []  # shared with what `of_rows` gives

    def of_rows(self, first: int, last: int) -> Merger:
        """The same for rows first..last-1 of the batch: what is added there is added here."""
        part = copy.copy(self)
        part._out, part._lse = self._out[first:last], self._lse[first:last]
        return part

    def add(self, first: int, last: int, out: Tensor, lse: Tensor) -> None:
        """Output (B, H, n, E) and log-sum-exp (B, H, n) of a call for the queries first..last-1."""
        held, sums = self._out[:, :, first:last], self._lse[:, :, first:last]
        is_first = not self._added
        self._added.append(True)
        if is_first:  # nothing to merge with
            held.copy_(out)
            sums.copy_(lse)
            return
        total = torch.logaddexp(sums, lse).clamp_(min=_LEAST)  # a query without keys so far gets zeros
        held.mul_((sums - total).exp_().unsqueeze(-1))
        held.addcmul_(out.to(held.dtype), (lse - total).exp_().unsqueeze(-1))
        sums.copy_(total)

    def output(self) -> Tensor:
        """(B, H, N, E) in the queries' dtype; zeros for a query that no call was made for."""
        return self._out.to(self._dtype)


def attend_band(into: Merger, band: Band, at: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Add the attention of queries q (B, H, N, D) over the keys of a band to `into`, whose query `at` is q's first.

    k (B, G, M, D), v (B, G, M, E).
    """
    for block in band.blocks():
        queries = q[:, :, block.first : block.last]
        keys, values = (x[:, :, block.begin : block.end] for x in (k, v))
        if block.kind == "masked":
            hidden = band.hidden(block, q.device)
            mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -math.inf)
            out, lse = call(queries, keys, values, scale, mask=mask)
        elif block.kind == "anticausal":
            out, lse = call(queries.flip(2), keys.flip(2), values.flip(2), scale, causal=True)
            out, lse = out.flip(2), lse.flip(2)
        else:
            out, lse = call(queries, keys, values, scale, causal=block.kind == "causal")
        into.add(at + block.first, at + block.last, out, lse)


def call(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One attention call with its log-sum-exp: (B, H, N, E) and (B, H, N), the latter float32 or wider.

    Args:
        q, k, v: (B, H, N, D), (B, G, M, D), (B, G, M, E); query head h reads key head h // (H // G).
        causal: for N = M only: query i sees keys 0 to i.
        mask: (N, M) in q's dtype, added to the scores.
    """
    # torch's CPU kernel takes the channels of a token to lie side by side, and doesn't ask. Those for accelerators read
    # several numbers at once, which have to begin at multiples of that; cached keys with their position don't.
    q, k, v = (x.contiguous() if x.stride(-1) != 1 or (x.is_cuda and x.stride(-2) % 8) else x for x in (q, k, v))
    batch, heads, queries, width = q.shape
    groups, size = k.shape[1], v.shape[-1]
    readers = heads // groups
    together = not causal and mask is None
    if together:
        # Nothing tells the queries of a group apart: they are one longer list, and each key is read once.
        q = q.reshape(batch * groups, 1, readers * queries, width)
        k, v = (x.reshape(batch * groups, 1, *x.shape[2:]) for x in (k, v))
    else:
        # Groups stand in the batch, where their readers share one key without a copy.
        q = q.reshape(batch * groups, readers, queries, width)
        k, v = (x.reshape(batch * groups, 1, *x.shape[2:]).expand(-1, readers, -1, -1) for x in (k, v))
    if width != size:  # the kernels want one size; zeros change neither scores nor outputs
        q, k = (F.pad(x, (0, max(0, size - width))) for x in (q, k))
        v = F.pad(v, (0, max(0, width - size)))
    out, lse = _kernel(q, k, v, scale, causal, mask)
    return out[..., :size].reshape(batch, heads, queries, size), lse.reshape(batch, heads, queries)


def _kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's kernel for the device, of those that give the log-sum-exp; q, k and v have equal heads and channels."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse
    if q.device.type == "cuda" and mask is None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse[..., : q.shape[2]]
    if q.device.type == "cuda" and mask is None and q.dtype != torch.float64:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
        return out, lse[..., : q.shape[2]]  # padded to a multiple of the kernel's block
    return _by_rows(q, k, v, scale, causal, mask)


def _by_rows(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same from plain products, some queries at a time: for devices and dtypes without such a kernel."""
    outs, sums = [], []
    wide = torch.promote_types(q.dtype, torch.float32)
    for first in range(0, q.shape[2], ROWS):
        last = min(first + ROWS, q.shape[2])
        end = last if causal else k.shape[2]
        scores = (q[:, :, first:last] @ k[:, :, :end].transpose(2, 3)).to(wide) * scale
        if causal:
            later = torch.ones(last - first, end, dtype=torch.bool, device=q.device).triu(first + 1)
            scores = scores.masked_fill(later, -math.inf)
        if mask is not None:
            scores = scores + mask[first:last, :end]
        sums.append(torch.logsumexp(scores, dim=-1))
        outs.append((scores - sums[-1].unsqueeze(-1)).exp().to(v.dtype) @ v[:, :, :end])
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)
