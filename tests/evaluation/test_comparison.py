from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.data.qa_problems import Problem, problems_of
from ropewalk.data.text import text_of
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.comparison import compare, summarise
from ropewalk.evaluation.grid import Condition
from ropewalk.evaluation.halves import Windows
from ropewalk.evaluation.identity import prompts_a_draw
from ropewalk.evaluation.statistics import (
    Answer,
    Estimate,
    difference_of,
    mean_interval,
    mean_of,
    paired_difference,
    proportion_interval,
    share_of,
)
from ropewalk.tasks.many_shot import ManyShotTask

WHERE = Condition("m", "needle", 300)
TEXT = text_of("Some text.", "some")
CLUSTERS = st.lists(st.lists(st.tuples(st.floats(0, 9), st.booleans()), min_size=1, max_size=4), min_size=2, max_size=6)


def same(one: Estimate, other: Estimate) -> bool:
    return all(
        a == pytest.approx(b, rel=1e-9, abs=1e-9)
        for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    )


@given(CLUSTERS)
def test_sums_give_the_intervals_that_all_answers_give(clusters: list[list[tuple[float, bool]]]) -> None:
    labels = [i for i, group in enumerate(clusters) for _ in group]
    values = [value for group in clusters for value, _ in group]
    rights = [right for group in clusters for _, right in group]
    counts = np.array([float(len(group)) for group in clusters])
    means = np.array([sum(v for v, _ in group) / len(group) for group in clusters])
    right = np.array([float(sum(r for _, r in group)) for group in clusters])
    assert same(mean_of(means, counts), mean_interval(values, labels))
    assert same(share_of(right, counts), proportion_interval(rights, labels))


def test_sums_give_the_differences_that_all_answers_give() -> None:
    rng = random.Random(3)

    def run(shift: float) -> list[Answer]:
        return [Answer(f"p{p}", "", 0.5, f"{q}", "1", shift + rng.random(), True, "") for p in range(4) for q in "ab"]

    ours, theirs = run(0.0), run(0.5)
    wanted = paired_difference(ours, theirs)

    def means(answers: list[Answer]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([sum(a.nll for a in answers[i : i + 2]) / 2 for i in range(0, 8, 2)])

    found, p = difference_of(means(ours), means(theirs), np.full(4, 2.0))
    assert same(found, wanted.difference) and p == pytest.approx(wanted.p_t, rel=1e-9)


def test_one_prompt_has_no_interval_and_no_p() -> None:
    one = np.array([1.0])
    assert math.isinf(mean_of(one, one).high) and not mean_of(one, one).is_clustered
    assert difference_of(one, np.array([2.0]), one)[1] == 1.0
    share = share_of(one, np.array([2.0]))
    assert (share.mean, share.low, share.high) == (0.5, 0.0, 1.0)
    assert difference_of(np.ones(3), np.ones(3), np.ones(3))[1] == 1.0


@pytest.mark.parametrize(("k", "has_interval"), [(2, False), (5, False), (6, True), (9, True)])
def test_a_difference_without_any_spread_is_as_certain_as_its_prompts_are_many(k: int, has_interval: bool) -> None:
    found, p = difference_of(np.zeros(k), np.ones(k), np.ones(k))
    assert p == 2 / 2**k and found.mean == -1.0
    assert (found.low, found.high) == ((-1.0, -1.0) if has_interval else (-math.inf, math.inf))
    answers = [[Answer(f"p{i}", "s", 0.0, "k", "e", nll, True, "") for i in range(k)] for nll in (0.0, 1.0)]
    paired = paired_difference(*answers)
    assert (paired.p_t, paired.p_permutation) == (p, p) and paired.is_better == has_interval


def cell(plan: str, prompt: int, nll: float, right: int | None = 1, task: str = "t") -> Cell:
    return Cell(f"{plan}{task}{prompt}", "m", plan, task, prompt, 2, right, nll, 1.0, 0, 0)


def test_rows_are_paired_on_shared_prompts_and_corrected_for_their_number() -> None:
    rng = random.Random(0)
    found = {
        name: [cell(name, 1000 + i, 1.0 + shift + 0.05 * rng.random(), task=f"t{i % 2}") for i in range(number)]
        for name, shift, number in (("plain", 0.0, 6), ("good", -0.5, 6), ("short", 0.0, 3), ("none", 0.0, 0))
    }
    comparison = compare(WHERE, found, ["plain", "good", "absent"])
    assert [row.plan for row in comparison.rows] == ["plain", "good", "short"]
    assert comparison.baselines == ("plain", "good")
    plain, good, short = comparison.rows
    assert set(plain.against) == {"good"} and set(good.against) == {"plain"} and set(short.against) == set(found) - {
        "short", "none"
    }  # fmt: skip
    assert good.against["plain"].is_better and not good.against["plain"].is_worse and plain.against["good"].is_worse
    assert short.against["plain"].difference.n == 6 and short.prompts == 3 and good.prompts == 6
    # Two plans are compared with plain: the smaller p counts twice, the larger once, and is at least the other's.
    assert good.against["plain"].adjusted == pytest.approx(2 * good.against["plain"].p)
    assert short.against["plain"].p > good.against["plain"].adjusted
    assert short.against["plain"].adjusted == short.against["plain"].p
    assert plain.right is not None and plain.right.mean == 0.5 and plain.right.n == 12
    assert comparison.row("good") == good and comparison.row("x") is None
    assert comparison.to_dict()["plans"][1]["against"]["plain"]["adjusted"] == good.against["plain"].adjusted


def test_pairs_are_of_the_same_seed_and_prompt_whatever_the_order() -> None:
    plain = [cell("plain", 1000 + i, float(i + j), task=f"t{j}") for i in range(3) for j in range(2)]
    other = [cell("other", c.prompt, c.nll - 1, task=c.task) for c in reversed(plain[2:])]
    found = compare(WHERE, {"plain": plain, "other": other}, ["plain"]).rows[1].against["plain"]
    assert found.difference.mean == -1.0 and found.difference.standard_error == 0.0
    assert found.difference.clusters == 4


def test_nothing_is_asked_so_nothing_is_right() -> None:
    assert compare(WHERE, {"plain": [cell("plain", 1000, 1.0, None)]}, []).rows[0].right is None


@pytest.mark.parametrize("prompt", [3, 999])
def test_what_chose_must_not_judge(prompt: int) -> None:
    with pytest.raises(ArgumentError, match="for choosing"):
        compare(WHERE, {"plain": [cell("plain", 1000, 1.0), cell("plain", prompt, 1.0)]}, [])


def test_prompts_of_one_draw_are_one_unit() -> None:
    # Two problems, each at three depths: depths differ a lot, problems hardly.
    nlls = {1000: 0.0, 1001: 1.0, 1002: 2.0, 1003: 0.1, 1004: 1.1, 1005: 2.1}
    plain = [cell("plain", prompt, nll) for prompt, nll in nlls.items()]
    other = [cell("other", prompt, nll - 0.5 - 0.1 * (prompt > 1002)) for prompt, nll in nlls.items()]
    of_both = {"plain": plain, "other": other}
    row, one = compare(WHERE, of_both, ["plain"], {"t": 3}).rows
    labels = [(prompt - 1000) // 3 for prompt in nlls for _ in range(2)]
    assert same(row.nll, mean_interval([nll for nll in nlls.values() for _ in range(2)], labels))
    assert row.prompts == 6 and row.nll.clusters == 2 and one.against["plain"].difference.clusters == 2
    assert one.against["plain"].difference.mean == pytest.approx(-0.55)
    assert compare(WHERE, of_both, [], {"else": 3}).rows[0].nll.clusters == 6


def test_a_many_shot_problem_is_one_draw() -> None:
    problems = problems_of([Problem("q", "1", "", "p 1"), Problem("r", "2", "", "p 2")], "p")
    assert prompts_a_draw(ManyShotTask(problems, 300, (None, 0.0, 1.0)).to_dict()) == 3
    assert prompts_a_draw(ManyShotTask(problems, 300, (None, 0.0), protocol="multi").to_dict()) == 1
    assert prompts_a_draw({"task": "needle", "depths": 5}) == 1


def test_models_and_tasks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two dtypes of a model, two sets of options under one label, and seeds, which belong together."""
    models = {"a" * 16: {"dtype": "float32"}, "b" * 16: {"dtype": "bfloat16"}}
    tasks = {
        name * 16: {"length": 300, "depths": depths, "seed": seed}
        for name, depths, seed in (("c", 2, 0), ("d", 2, 1), ("e", 5, 0))
    }
    with Cells(tmp_path) as cells:
        for name, content in models.items():
            cells.define("model", name, content, "m")
        for name, content in tasks.items():
            cells.define("task", name, content, "needle")
        cells.define("plan", "f" * 16, {}, "plain")
        for m, model in enumerate(models):
            for t, task in enumerate(tasks):
                cells.put(f"{m}{t}", (model, "f" * 16, task), 1000, [], 1.0, nll=10.0 * m + t)
        found = {(c.condition.model, c.rows[0].prompts): c.rows[0].nll.mean for c in summarise(cells)}
        names = {c.condition.task for c in summarise(cells)}
    assert found == {
        ("m (aaaaaaaa)", 2): 0.5,
        ("m (aaaaaaaa)", 1): 2.0,
        ("m (bbbbbbbb)", 2): 10.5,
        ("m (bbbbbbbb)", 1): 12.0,
    }
    assert len(names) == 2 and all(name.startswith("needle (") for name in names)


def test_cells_that_may_have_asked_the_same_are_never_added_up(tmp_path: Path) -> None:
    """Seeds of one comparison share out problems and windows; another config's seeds may take the same again."""
    problems = problems_of([Problem(f"q {i}", "1", "", f"p {i}") for i in range(8)], "p")
    shared = [ManyShotTask(problems, 300, seed=seed, seeds=(0, 1)).to_dict() for seed in (0, 1)]
    alone = [ManyShotTask(problems, 300, seed=seed).to_dict() for seed in (0, 1)]
    others = [ManyShotTask(problems, 300, seed=seed, seeds=(2, 3)).to_dict() for seed in (2, 3)]
    windows = [Windows(TEXT, 300, *place).to_dict() for place in ((0, 1), (0, 2), (1, 2))]
    tasks = {f"{i:016x}": content for i, content in enumerate([*shared, *alone, *others, *windows])}
    with Cells(tmp_path) as cells:
        cells.define("plan", "f" * 16, {}, "plain")
        for name, content in tasks.items():
            cells.define("task", name, content, "a task")
            cells.put(name, ("m", "f" * 16, name), 1000, [], 1.0, nll=float(int(name, 16)))
        found = sorted(c.rows[0].nll.mean for c in summarise(cells))
    # shared together, each alone, the others together, one window alone, two windows together
    assert found == [0.5, 2.0, 3.0, 4.5, 6.0, 7.5]


def test_what_rounding_may_make_is_neither_better_nor_worse() -> None:
    plain = [cell("plain", 1000 + i, 1.0 + i) for i in range(4)]
    for shift, is_worse in ((1e-6, False), (0.0021, True)):
        other = [cell("other", 1000 + i, 1.0 + i + shift * (1 + i / 100)) for i in range(4)]
        against = compare(WHERE, {"plain": plain, "other": other}, ["plain"]).rows[1].against["plain"]
        assert against.adjusted < 0.001 and (against.is_worse, against.is_better) == (is_worse, False)
