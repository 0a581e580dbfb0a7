from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.sweeps import CONFIG, TEXT, LocalNeedles, needles_folder

from ropewalk.encodings.dope import DoPE
from ropewalk.errors import ArgumentError, RopewalkError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.plans import build_plan
from ropewalk.evaluation.search import Pick, best_of, search_plan
from ropewalk.evaluation.statistics import Answer

SEARCH = CONFIG | {"search": {"trials": 6, "prompts": 2, "space": {"heads": [1, 2, 3], "r": [2, 4]}}}


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> LocalNeedles:
    return LocalNeedles(needles_folder(tmp_path_factory.mktemp("search")), TEXT)


class Made:
    """Cells made up from a plan's number of heads, and a note of each that was asked for and wasn't there."""

    def __init__(self, needles: LocalNeedles, cells: Cells, content: Any = SEARCH):
        self.config = needles.config(content)
        self.cells, self.job = cells, needles.job(self.config)
        self.target = needles.target(self.config, cells)
        self.measured: list[tuple[str, int]] = []

    def measure(self, plans: Sequence[Candidate], indices: Sequence[int]) -> None:
        for unit in self.job.units(plans, indices):
            for number, plan in enumerate(unit.candidates):
                if unit.keys[number] not in self.cells.cells:
                    heads = len(plan.encoding.heads) if isinstance(plan.encoding, DoPE) else len(plan.name)
                    answer = Answer("p", "", 0.5, "k", "1", abs(heads - 2) + 0.1 * unit.index, False, "")
                    self.cells.put(unit.keys[number], unit.of[number], unit.index, [answer], 1.0)
                    self.measured.append((plan.name, unit.index))

    def search(self, rule: str | None = "ntk") -> Pick:
        return search_plan(self.config, self.target, self.job, self.measure, Pick("m", 220, rule))


def test_the_rule_with_the_likeliest_answers_is_picked_on_prompts_of_its_own(
    needles: LocalNeedles, tmp_path: Path
) -> None:
    with Cells(tmp_path) as cells:
        made = Made(needles, cells)
        plans = [build_plan(entry, made.target) for entry in made.config.plans[1:]]
        named = [Candidate(name, plan.encoding) for name, plan in zip(("long", "ab"), plans, strict=True)]
        pick = best_of(named, made.job, cells, made.measure, range(2))
        assert pick.rule == "ab" and [name for name, _ in pick.tried] == ["ab", "long"] and pick.prompts == 2
        assert dict(pick.tried) == pytest.approx({"ab": 0.05, "long": 2.05})  # means over both prompts
        assert {index for _, index in made.measured} == {0, 1}
        assert best_of(named[:1], made.job, cells, made.measure, range(2)).rule == "long"
        assert best_of([], made.job, cells, made.measure, range(2)).rule is None
        assert len(made.measured) == 4


def test_a_search_finds_the_best_of_its_plans_and_goes_on_where_it_stopped(
    needles: LocalNeedles, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    with Cells(tmp_path) as cells:
        first = Made(needles, cells)
        pick = first.search()
        (best,) = pick.plans
        assert isinstance(best.encoding, DoPE) and best.name == pick.tried[0][0]
        assert [nll for _, nll in pick.tried] == sorted(nll for _, nll in pick.tried)
        assert {index for _, index in first.measured} == {0, 1}
        assert all(name.startswith(("ntk x2 + DoPE", "ntk x3 + DoPE")) for name, _ in first.measured)
    with Cells(tmp_path) as cells:
        again = Made(needles, cells)
        assert again.search() == pick and not again.measured
        more = Made(needles, cells, SEARCH | {"search": SEARCH["search"] | {"trials": 8}})
        assert more.search().tried[0][1] <= pick.tried[0][1]


def test_what_goes_wrong_while_plans_are_measured_ends_the_search(needles: LocalNeedles, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with Cells(tmp_path) as cells:
        made = Made(needles, cells)

        def full(*_: Any) -> None:
            raise ArgumentError("out", str(tmp_path), "no space left on the disk")

        made.measure = full  # type: ignore[method-assign]
        with pytest.raises(ArgumentError, match="no space left"):
            made.search()


def test_plans_that_a_model_cannot_have_are_passed_over(
    needles: LocalNeedles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from ropewalk.evaluation import search as module

    real = module.build_plan
    built: list[int] = []

    def refuse(entry: Any, target: Any) -> Candidate:
        built.append(entry.dope.heads)
        if len(built) == 1 or entry.dope.heads == 99:
            raise RopewalkError("can't have that")
        return real(entry, target)

    monkeypatch.setattr(module, "build_plan", refuse)
    with Cells(tmp_path) as cells:
        assert Made(needles, cells).search().plans
        with pytest.raises(RopewalkError, match=r"none of 6 plans can be had here \(can't have that"):
            Made(needles, cells, SEARCH | {"search": SEARCH["search"] | {"space": {"heads": [99]}}}).search()
