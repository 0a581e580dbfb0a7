"""How well a model predicts each token by its position: where reading breaks past the training length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.evaluation.score import Estimate, mean_interval


@dataclass(frozen=True)
class Bucket:
    """Tokens at positions first..last-1 of all windows: nats a token, windows as the independent units."""

    first: int
    last: int
    nll: Estimate

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {"first": self.first, "last": self.last, "nll": self.nll.to_dict()}


def loss_by_position(
    model: nn.Module,
    windows: Sequence[Sequence[int]],
    edges: Sequence[int],
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Bucket]:
    """Nats a token in each bucket [edges[i], edges[i + 1]) of positions, a token's position counted from 0.

    The first token of a window has nothing before it and isn't counted. Windows are read in chunks with a cache, so
    that long ones need no logits of all tokens at once.

    Args:
        windows: token ids, all of one length.
        edges: ascending positions, at most the windows' length.
        on_done: called with the number of windows read.
    """
    lengths = {len(window) for window in windows}
    if len(lengths) != 1:
        raise ArgumentError("windows", sorted(lengths), "give at least one window, all of one length")
    (length,) = lengths
    ascending = len(edges) > 1 and all(a < b for a, b in itertools.pairwise(edges))
    if not ascending or edges[0] < 0 or edges[-1] > length or edges[1] < 2:
        raise ArgumentError("edges", list(edges), f"give ascending positions from 0 to {length}")
    found: list[list[float]] = [[] for _ in edges[1:]]
    for number, window in enumerate(windows):
        losses = token_nll(model, window)
        for into, (first, last) in zip(found, itertools.pairwise(edges), strict=True):
            into.append(float(losses[max(first - 1, 0) : last - 1].double().mean()))
        on_done(number + 1)
    units = range(len(windows))
    return [
        Bucket(first, last, mean_interval(means, units))
        for (first, last), means in zip(itertools.pairwise(edges), found, strict=True)
    ]


def doubling_edges(training_length: int, furthest: int) -> list[int]:
    """Positions 0, L, 2 L, ... up to `furthest` multiples of the training length L: a bucket for each length."""
    return [training_length * i for i in range(furthest + 1)]
