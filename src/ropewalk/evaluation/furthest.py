"""Arms compared on the same windows at the furthest length, with p-values corrected for how many comparisons there are.

Each function takes {arm: nats a token of each window}, the windows in one order; they are the independent units.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.evaluation.cluster_sums import difference_of
from ropewalk.evaluation.compare import Against
from ropewalk.evaluation.score import holm


@dataclass(frozen=True)
class Lead:
    """The arm with the lowest figure, the next one, and how the former differs from the latter."""

    lowest: str
    following: str
    by: Against

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {"lowest": self.lowest, "next": self.following} | self.by.to_dict()


def against_first(nats: Mapping[str, Sequence[float]]) -> dict[str, Against]:
    """How each other arm differs from the first; p corrected for the number of those arms."""
    first, *others = nats
    return {arm: found for (arm, _), found in _compared(nats, [(arm, first) for arm in others]).items()}


def lead(nats: Mapping[str, Sequence[float]]) -> Lead | None:
    """Whether the lowest arm stands out from the next; None for one arm.

    Any two arms might have come out as these two, so p is corrected for the number of all pairs.
    """
    if len(nats) < 2:
        return None
    ordered = sorted(nats, key=lambda arm: sum(nats[arm]))
    pairs = list(itertools.combinations(ordered, 2))
    return Lead(ordered[0], ordered[1], _compared(nats, pairs)[pairs[0]])


def _compared(nats: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Against]:
    """How the first of each pair differs from the second; p corrected for the number of pairs."""
    held = {arm: np.array(windows, dtype=np.float64) for arm, windows in nats.items()}
    found = [difference_of(held[one], held[other], np.ones(len(held[one]))) for one, other in pairs]
    adjusted = holm([p for _, p in found])
    return {pair: Against(*one, corrected) for pair, one, corrected in zip(pairs, found, adjusted, strict=True)}
