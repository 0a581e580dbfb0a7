from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.halving import halve, rounds
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Answer


class Sweep:
    """Gives each candidate the NLL of its base, a little more on odd prompts, and notes what was asked."""

    def __init__(self, store: Store):
        self.store = store
        self.asked: list[tuple[int, int]] = []

    def measure(self, stage: str, candidates: list[Candidate], task: object, indices: list[int]) -> object:
        (index,) = indices
        self.asked.append((index, len(candidates)))
        return {c.name: [Answer(f"p{index}", "original", 0.5, "k", "1", nll(c, index), False, "")] for c in candidates}


def nll(candidate: Candidate, index: int) -> float:
    rope = candidate.encoding
    assert isinstance(rope, RoPE)
    return rope.base / 1000 + index % 2


def named(*bases: int) -> list[Candidate]:
    return [Candidate(str(base), RoPE(16, base=float(base))) for base in bases]


def halved(path: Path, candidates: list[Candidate], units: int) -> tuple[list[tuple[Candidate, list[Answer]]], Sweep]:
    with Store(path, {}) as store:
        sweep = Sweep(store)
        found = halve(sweep, "rules", candidates, None, units, first_prompt=7)  # type: ignore[arg-type]
        return found, sweep


@given(st.integers(0, 40), st.integers(-3, 120))
def test_rounds_stay_within_the_units_and_never_grow(candidates: int, units: int) -> None:
    sizes = rounds(candidates, units)
    assert sum(sizes) <= max(0, units)
    assert sizes == sorted(sizes, reverse=True)
    assert all(1 <= size <= candidates for size in sizes)
    assert bool(sizes) == (candidates >= 1 and units >= 1)


def test_rounds_halve_down_to_two() -> None:
    assert rounds(17, 100) == [17, 9, 5, 3, 2]
    assert rounds(17, 20) == [12, 6]
    assert rounds(17, 5) == [3, 2]
    assert rounds(17, 4) == [4]
    assert rounds(17, 3) == [3]
    assert rounds(2, 50) == [2, 2]
    assert rounds(1, 50) == [1]


def test_the_best_come_first_and_those_that_got_further_before_the_others(tmp_path: Path) -> None:
    found, sweep = halved(tmp_path / "r.jsonl", named(9, 3, 7, 2, 5), 100)
    assert [c.name for c, _ in found] == ["2", "3", "5", "7", "9"]
    assert sweep.asked == [(7, 5), (8, 3), (9, 2)]
    assert [[a.prompt for a in answers] for _, answers in found] == [
        ["p7", "p8", "p9"],
        ["p7", "p8", "p9"],
        ["p7", "p8"],
        ["p7"],
        ["p7"],
    ]


def test_few_units_leave_the_last_candidates_out(tmp_path: Path) -> None:
    found, _ = halved(tmp_path / "r.jsonl", named(9, 3, 7, 2, 5), 2)
    assert [c.name for c, _ in found] == ["3", "9"]


def test_a_decision_stands_whatever_the_budget_of_a_later_run(tmp_path: Path) -> None:
    first, sweep = halved(tmp_path / "r.jsonl", named(9, 3, 7, 2, 5), 6)
    again, later = halved(tmp_path / "r.jsonl", named(9, 3, 7, 2, 5), 100)
    assert sweep.asked == later.asked
    assert [c.name for c, _ in again] == [c.name for c, _ in first]
    other, free = halved(tmp_path / "other.jsonl", named(9, 3, 7, 2, 5), 100)
    assert free.asked != sweep.asked and len(other) > len(first)


@pytest.mark.parametrize("units", [0, -5])
def test_without_units_nothing_is_measured(tmp_path: Path, units: int) -> None:
    found, sweep = halved(tmp_path / "r.jsonl", named(9, 3), units)
    assert found == [] and sweep.asked == []
