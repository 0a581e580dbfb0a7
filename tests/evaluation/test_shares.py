"""Shares of right answers by group, and comparisons on the same questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ropewalk.data.minimal_pairs import Pair
from ropewalk.evaluation.downstream import Found
from ropewalk.evaluation.shares import groups
from ropewalk.evaluation.statistics import Answer, holm

PAIRS = [Pair(name, "g", "b", p) for name, p, n in (("a", "x", 8), ("b", "x", 2), ("c", "y", 4)) for _ in range(n)]


def found(name: str, right: dict[str, list[bool]], words: tuple[bool, ...] = ()) -> Found:
    def answer(test_set: str, number: int, is_right: bool) -> Answer:
        return Answer(f"{test_set}/{number}", test_set, 0.0, "pair", "g", 1.0 + number, is_right, "g")

    pairs = tuple(answer(s, n, r) for s, held in right.items() for n, r in enumerate(held))
    arm: Any = SimpleNamespace(name=name)
    return Found(arm, pairs, tuple(answer("last words", n, r) for n, r in enumerate(words)))


FIRST = found("first", {"a": [True] * 8, "b": [True, False], "c": [False] * 4}, (True, False))
SECOND = found("second", {"a": [False] * 8, "b": [True, False], "c": [True] * 4}, (True, True))
THIRD = found("third", {"a": [True] * 8, "b": [True, True], "c": [False] * 4}, (True, False))


def test_groups_are_all_phenomena_and_test_sets() -> None:
    made = groups([FIRST, SECOND, THIRD], PAIRS)
    assert [(g.kind, g.name) for g in made] == [
        ("all", "all pairs"),
        ("all", "last words"),
        ("phenomenon", "x"),
        ("phenomenon", "y"),
        ("test set", "a"),
        ("test set", "b"),
        ("test set", "c"),
    ]
    assert [g.shares["first"].right.mean for g in made] == pytest.approx([9 / 14, 0.5, 0.9, 0.0, 1.0, 0.5, 0.0])
    assert [g.shares["first"].right.n for g in made] == [14, 2, 10, 4, 8, 2, 4]


def test_comparisons_are_paired_and_corrected() -> None:
    whole = groups([FIRST, SECOND, THIRD], PAIRS)[0]
    assert whole.shares["first"].against is None
    second, third = whole.shares["second"].against, whole.shares["third"].against
    assert second is not None and third is not None
    assert (second.exact.won, second.exact.lost) == (4, 8) and (third.exact.won, third.exact.lost) == (1, 0)
    assert second.difference.mean == pytest.approx(-4 / 14) and third.difference.mean == pytest.approx(1 / 14)
    assert second.difference.low < -4 / 14 < second.difference.high
    assert [second.p, third.p] == holm([second.exact.p, third.exact.p])
    assert second.p > second.exact.p


def test_one_test_set_without_a_phenomenon_is_told_once() -> None:
    one = found("first", {"a": [True, False]})
    assert [g.name for g in groups([one], [Pair("a", "g", "b")] * 2)] == ["all pairs"]


def test_a_test_set_may_have_several_phenomena() -> None:
    one = found("first", {"a": [True, False, True]})
    made = groups([one], [Pair("a", "g", "b", name) for name in ("x", "y", "x")])
    assert [(g.name, g.shares["first"].right.mean, g.shares["first"].right.n) for g in made[1:]] == [
        ("x", 1.0, 2),
        ("y", 0.0, 1),
    ]


def test_to_dict_is_json_ready() -> None:
    held = groups([FIRST, SECOND], PAIRS)[0].to_dict()["models"]
    assert held["first"]["against"] is None and held["second"]["against"]["won"] == 4
    assert held["first"]["right"]["n"] == 14 and held["second"]["against"]["p_holm"] <= 1
