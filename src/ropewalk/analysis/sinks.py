"""How much of a head's attention ends up on a few tokens, summed over blocks of queries."""

from __future__ import annotations

import torch
from torch import Tensor

from ropewalk.analysis.rows import AttentionRows
from ropewalk.errors import ArgumentError

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
