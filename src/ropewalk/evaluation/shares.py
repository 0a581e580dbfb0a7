"""Shares of right answers, by group, and how each model's differ from the first one's on the same questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from ropewalk.data.minimal_pairs import Pair
from ropewalk.evaluation.downstream import Found, by_test_set, pair_id
from ropewalk.evaluation.statistics import (
    Answer,
    Estimate,
    PairedExact,
    holm,
    mean_interval,
    paired_exact,
    proportion_interval,
)

PAIRS, WORDS = "all pairs", "last words"


@dataclasses.dataclass(frozen=True)
class Against:
    """How a share differs from the first model's, on the same questions.

    Args:
        difference: of the shares, with Agresti and Min's interval.
        exact: questions won and lost, and McNemar's exact test of them.
        p: that test's p after Holm's correction for all the models compared with the first.
    """

    difference: Estimate
    exact: PairedExact
    p: float


@dataclasses.dataclass(frozen=True)
class Share:
    """How many questions of a group a model gets right (Wilson interval), and how that compares; None for the first."""

    right: Estimate
    nll: Estimate
    against: Against | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; `nll` is nats a right answer."""
        against = None
        if self.against is not None:
            against = {
                "difference": self.against.difference.to_dict(),
                **dataclasses.asdict(self.against.exact),
                "p_holm": self.against.p,
            }
        return {"right": self.right.to_dict(), "nll": self.nll.to_dict(), "against": against}


@dataclasses.dataclass(frozen=True)
class Group:
    """Questions that are told together, and each model's share by its name; `kind`: all, phenomenon, test set."""

    kind: str
    name: str
    shares: Mapping[str, Share]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "kind": self.kind,
            "name": self.name,
            "models": {n: share.to_dict() for n, share in self.shares.items()},
        }


def groups(found: Sequence[Found], pairs: Sequence[Pair]) -> list[Group]:
    """All pairs and last words, then each phenomenon that the files name, then each test set, where there are several.

    Questions are the independent units.
    """
    made = []
    if found[0].pairs:
        made.append(_group("all", PAIRS, {f.arm.name: f.pairs for f in found}))
    if found[0].passages:
        made.append(_group("all", WORDS, {f.arm.name: f.passages for f in found}))
    sets = by_test_set(pairs)
    phenomenon = {pair_id(name, n): pair.phenomenon for name, held in sets.items() for n, pair in enumerate(held)}
    for name in sorted({p for p in phenomenon.values() if p}):
        chosen = {f.arm.name: [a for a in f.pairs if phenomenon[a.prompt] == name] for f in found}
        made.append(_group("phenomenon", name, chosen))
    if len(sets) > 1:
        for name in sets:
            made.append(
                _group("test set", name, {f.arm.name: [a for a in f.pairs if a.setting == name] for f in found})
            )
    return made


def share_difference(won: int, lost: int, n: int, confidence: float = 0.95) -> Estimate:
    """By how much the shares of right answers of two runs differ on the same n independent questions.

    The interval is Agresti and Min's (Statistics in Medicine 24, 2005): Wald's after half a question is added to each
    of the four outcomes, so it never claims certainty, also where no answer changed.
    """
    size, difference = n + 2.0, (won - lost) / n
    shifted = (won - lost) / size
    error = math.sqrt(((won + lost + 1.0) / size - shifted**2) / size)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    low, high = max(-1.0, shifted - reach), min(1.0, shifted + reach)
    return Estimate(difference, min(low, difference), max(high, difference), error, n, n, n > 1, confidence)


def _group(kind: str, name: str, answers: Mapping[str, Sequence[Answer]]) -> Group:
    (first, base), *others = answers.items()
    exact = {arm: paired_exact(held, base) for arm, held in others}
    corrected = dict(zip(exact, holm([one.p for one in exact.values()]), strict=True))
    shares = {first: _share(base, None)}
    for arm, held in others:
        one = exact[arm]
        against = Against(share_difference(one.won, one.lost, len(held)), one, corrected[arm])
        shares[arm] = _share(held, against)
    return Group(kind, name, shares)


def _share(answers: Sequence[Answer], against: Against | None) -> Share:
    units = range(len(answers))
    right = proportion_interval([a.is_exact for a in answers], units)
    return Share(right, mean_interval([a.nll for a in answers], units), against)
