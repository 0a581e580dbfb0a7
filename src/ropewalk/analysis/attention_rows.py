"""Rows of one layer's attention matrix, made when they are asked for and never all at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ropewalk.encodings.base import BiasModule, ScoreModule
from ropewalk.errors import ArgumentError

# Scores of a block, two megabytes of float32: more of them leave a core's cache.
TILE = 524288
LEAST_ROWS, MOST_ROWS = 16, 512


class Scores(Protocol):
    """The scores of a layer's queries and keys before order, mask and softmax.

    `groups` are the query heads that are worked on together; places of queries are on the CPU.
    """

    groups: tuple[tuple[int, ...], ...]
    device: torch.device

    def of(self, group: int, queries: Tensor, begin: int, end: int) -> Tensor:
        """(heads of the group, n, end - begin) float32 for queries at places (n,) and keys begin..end-1.

        The next call may use the same memory.
        """
        ...


class Products:
    """scale q k^T, capped where the model caps it: cap tanh(. / cap).

    Args:
        q: (H, N, D).
        k: (K, N, D).
        reads: which key each query head reads, H numbers.
        scale: of the dot products.
        cap: the largest score there can be; None: no such thing.
    """

    def __init__(self, q: Tensor, k: Tensor, reads: Sequence[int], scale: float, cap: float | None = None):
        dtype = torch.promote_types(q.dtype, torch.float32)
        self._q, self._k, self._scale, self._cap = q, k.to(dtype), scale, cap
        readers: dict[int, list[int]] = {}
        for head, key in enumerate(reads):
            readers.setdefault(key, []).append(head)
        self._keys = tuple(readers)
        self.groups, self.device = tuple(map(tuple, readers.values())), q.device
        self._room = q.new_empty(0, dtype=dtype)

    def of(self, group: int, queries: Tensor, begin: int, end: int) -> Tensor:
        key, heads = self._keys[group], torch.tensor(self.groups[group])
        rows = self._q[heads[:, None], queries].to(self._k.dtype) * self._scale
        number = rows.shape[0] * rows.shape[1] * (end - begin)
        if self._room.numel() < number:
            self._room = rows.new_empty(number)
        # In the same memory each time: fresh pages would take as long as the products.
        scores = self._room[:number].view(*rows.shape[:2], end - begin)
        torch.mm(rows.flatten(0, 1), self._k[key, begin:end].T, out=scores.flatten(0, 1))
        return scores if self._cap is None else scores.div_(self._cap).tanh_().mul_(self._cap)


class Biased(Products):
    """scale q k^T and what a bias kind adds at positions (1, N)."""

    def __init__(self, module: BiasModule, q: Tensor, k: Tensor, reads: Sequence[int], scale: float, positions: Tensor):
        super().__init__(q, k, reads, scale)
        self._module, self._positions = module, positions[0]

    def of(self, group: int, queries: Tensor, begin: int, end: int) -> Tensor:
        bias = self._module.bias(self._positions[queries], self._positions[begin:end])
        return super().of(group, queries, begin, end).add_(bias[list(self.groups[group])])


class Given:
    """Scores that an encoding makes itself, for all heads of q (H, N, d) and k (G, N, d) at positions (1, N)."""

    def __init__(self, module: ScoreModule, q: Tensor, k: Tensor, scale: float, positions: Tensor):
        self._module, self._q, self._scale, self._positions = module, q[None], scale, positions
        self._keys = module.keys(k[None], positions, q.shape[0])
        self.groups: tuple[tuple[int, ...], ...] = (tuple(range(q.shape[0])),)
        self.device = q.device

    def of(self, group: int, queries: Tensor, begin: int, end: int) -> Tensor:
        seen = torch.arange(begin, end) <= queries[:, None]
        found = self._module.scores(
            self._q[:, :, queries],
            tuple(key[:, :, begin:end] for key in self._keys),
            self._positions[:, queries],
            self._positions[:, begin:end],
            seen[None, None].to(self._q.device),
            self._scale,
        )
        return found[0].to(torch.promote_types(found.dtype, torch.float32))


@dataclass(frozen=True)
class AttentionRows:
    """The attention weights of a layer that reads N tokens at once.

    Args:
        scores: of its queries and keys.
        num_heads, num_tokens: H and N.
        window: each query sees the last so many tokens alone, itself among them; None: all.
        mask: (1 or H, N, N) bool (True: may be seen) or numbers added to the scores, in place of
            order and window; None: those.
        sinks: (H,) scores of a token that isn't there: it takes its share of the weights. None: no such thing.
    """

    scores: Scores
    num_heads: int
    num_tokens: int
    window: int | None = None
    mask: Tensor | None = None
    sinks: Tensor | None = None

    def weights(self, group: int, queries: Tensor) -> tuple[int, Tensor]:
        """(first token, weights (heads of the group, n, m)) of ascending queries (n,) to m tokens from that one on.

        The others get nothing. float32; a query that sees no token gets zeros. The next call may use the same memory.
        """
        heads = list(self.scores.groups[group])
        part = None if self.mask is None else self._mask_part(self.mask, heads, queries)
        begin, end = self._span(queries) if part is None else _seen_span(part)
        scores = self.scores.of(group, queries, begin, end)
        if part is None:
            self._hide_by_order(scores, queries, begin, end)
        else:
            part = part[..., begin:end]
            scores = scores.masked_fill_(~part, -math.inf) if part.dtype == torch.bool else scores + part
        empty = None if part is None else scores.amax(dim=-1, keepdim=True) == -math.inf
        if self.sinks is None:
            weights = torch.softmax(scores, dim=-1, out=scores)
        else:
            beside = self.sinks[heads].to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], -1)
            weights = torch.softmax(torch.cat((scores, beside), dim=-1), dim=-1)[..., :-1]
        return begin, weights if empty is None else weights.masked_fill_(empty, 0.0)

    def blocks(self, group: int, queries: Tensor) -> Iterator[Tensor]:
        """Ascending queries (n,) in blocks of at most `TILE` scores, but of 16 queries at least."""
        places, heads, first = queries.tolist(), len(self.scores.groups[group]), 0

        def fitting(place: int) -> int:
            return min(max(TILE // (heads * (place + 1)), LEAST_ROWS), MOST_ROWS)

        while first < len(places):
            # As many as fit before the last token that so many would see, were each to see as little as the first.
            furthest = min(first + fitting(places[first]), len(places)) - 1
            last = first + fitting(places[furthest])
            yield queries[first:last]
            first = last

    def row(self, query: int) -> Tensor:
        """The weights of one query in all heads, (H, N) float32."""
        found = torch.zeros(self.num_heads, self.num_tokens)
        for group, heads in enumerate(self.scores.groups):
            begin, weights = self.weights(group, torch.tensor([query]))
            found[list(heads), begin : begin + weights.shape[-1]] = weights[:, 0].float().cpu()
        return found

    def _span(self, queries: Tensor) -> tuple[int, int]:
        begin = 0 if self.window is None else max(0, int(queries[0]) - self.window + 1)
        return begin, int(queries[-1]) + 1

    def _hide_by_order(self, scores: Tensor, queries: Tensor, begin: int, end: int) -> None:
        late, of_queries = int(queries[0]) + 1 - begin, queries.to(scores.device)[:, None]
        places = torch.arange(begin, end, device=scores.device)
        scores[..., late:].masked_fill_(places[late:] > of_queries, -math.inf)
        if self.window is not None and int(queries[-1]) - self.window >= begin:
            scores.masked_fill_(places <= of_queries - self.window, -math.inf)

    def _mask_part(self, mask: Tensor, heads: list[int], queries: Tensor) -> Tensor:
        part = mask[torch.tensor(heads)[:, None], queries] if mask.shape[0] > 1 else mask[:, queries]
        if part.dtype == torch.bool:
            return part
        # Masks of numbers hide with the dtype's lowest one; what is hidden must be known as such here.
        return part.masked_fill(part <= torch.finfo(part.dtype).min / 2, -math.inf).float()


def _seen_span(part: Tensor) -> tuple[int, int]:
    """The range of tokens that a part of a mask (·, n, N) lets anybody see, one at least."""
    seen = (part if part.dtype == torch.bool else part > -math.inf).flatten(0, -2).any(0).nonzero()
    return (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)


# Queries at places from here on count, so that each has at least as many tokens before it.
FIRST_QUERY = 64
# A query's last tokens, itself among them, that no column mass counts: near tokens are read for their own sake.
RECENT = 16
# Places along the text by which a column mass is summed up for pictures.
BINS = 256


def counted_queries(num_tokens: int, sample: int | None = None) -> Tensor:
    """The places of the queries that count, ascending: all from 64 on, or `sample` of them, evenly spread.

    The last token is always among them.

    Raises:
        ArgumentError: a text of 64 tokens or fewer, or a sample below 1.
    """
    if num_tokens <= FIRST_QUERY:
        raise ArgumentError("input_ids", num_tokens, f"give more than {FIRST_QUERY} tokens: sinks are of later queries")
    if sample is not None and sample < 1:
        raise ArgumentError("queries", sample, "give 1 or more, or None for all")
    number = num_tokens - FIRST_QUERY
    if sample is None or sample >= number:
        return torch.arange(FIRST_QUERY, num_tokens)
    # Ends of equal stretches.
    return FIRST_QUERY - 1 + torch.arange(1, sample + 1) * number // sample


def column_mass(rows: AttentionRows, queries: Tensor) -> Tensor:
    """The mean attention that each token gets from queries to which it isn't recent, (H, N) float32 on the CPU.

    mass_h[m] = 1/|Q| sum over n in Q with n - m >= 16 of A_h[n, m], for attention weights A and the queries Q. A query
    that comes too early, or whose window is too short, gives 0; so a row sums to at most 1.
    """
    mass = torch.zeros(rows.num_heads, rows.num_tokens)
    for group, heads in enumerate(rows.scores.groups):
        found = torch.zeros(len(heads), rows.num_tokens, device=rows.scores.device)
        for part in rows.blocks(group, queries):
            begin, weights = rows.weights(group, part)
            end = begin + weights.shape[-1]
            near = max(begin, int(part[0]) - RECENT + 1)
            recent = torch.arange(near, end) > part[:, None] - RECENT
            weights[..., near - begin :].masked_fill_(recent.to(weights.device), 0.0)
            found[:, begin:end] += weights.sum(dim=1)
        mass[list(heads)] = found.cpu()
    return mass / len(queries)


def by_place(mass: Tensor) -> Tensor:
    """A column mass (H, N) summed over at most 256 equal stretches of the text: (H, bins)."""
    num_tokens = mass.shape[-1]
    bins = min(BINS, num_tokens)
    place = torch.arange(num_tokens) * bins // num_tokens
    return mass.new_zeros(mass.shape[0], bins).index_add_(1, place, mass)


def sink_figures(mass: Tensor, first_tokens: int) -> dict[str, Tensor]:
    """What is kept of a layer's column mass (H, N): `first`, `few`, `largest`, `largest_at` (H,), `by_place` (H, bins).

    `first` and `few` are the mass of the first token and of the first `first_tokens`: to no query that counts are
    those recent, so they are all that these queries give them.
    """
    largest, at = mass.max(dim=-1)
    few = mass[:, :first_tokens].sum(-1)
    return {"first": mass[:, 0], "few": few, "largest": largest, "largest_at": at, "by_place": by_place(mass)}


def check_first_tokens(first_tokens: int) -> None:
    """Raise ArgumentError unless all of the first tokens are far from every query that counts."""
    most = FIRST_QUERY - RECENT + 1
    if isinstance(first_tokens, bool) or not isinstance(first_tokens, int) or not 1 <= first_tokens <= most:
        raise ArgumentError("first_tokens", first_tokens, f"give 1 to {most}")
