"""Plans compared on the same prompts: shares and likelihoods with intervals, differences with corrected p-values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.grid import Condition
from ropewalk.evaluation.identity import of_all_seeds, prompts_a_draw, reference
from ropewalk.evaluation.statistics import Estimate, Numbers, difference_of, holm, mean_of, share_of
from ropewalk.evaluation.sweep_config import PLAIN
from ropewalk.tasks.base import REPORT_FIRST

# Nats a token, the last digit that tables show. Rounding alone can make a smaller difference, the same on every prompt.
LEAST_DIFFERENCE = 0.001


@dataclass(frozen=True)
class Against:
    """How a plan's answer NLL differs from a baseline's on the prompts that both have, in nats a token.

    p: two-sided t-test over prompts. adjusted: Holm's, over all plans compared with this baseline here.
    """

    difference: Estimate
    p: float
    adjusted: float

    @property
    def is_better(self) -> bool:
        """Whether the right answers are likelier, beyond chance also among so many comparisons."""
        return self.adjusted < 0.05 and self.difference.mean <= -LEAST_DIFFERENCE

    @property
    def is_worse(self) -> bool:
        """Whether the right answers are less likely, beyond chance also among so many comparisons."""
        return self.adjusted < 0.05 and self.difference.mean >= LEAST_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {"difference": self.difference.to_dict(), "p": self.p, "adjusted": self.adjusted}


@dataclass(frozen=True)
class Row:
    """A plan's figures; `right` is None where nothing is asked, `against` has an entry a baseline but for itself."""

    plan: str
    prompts: int
    right: Estimate | None
    nll: Estimate
    against: Mapping[str, Against]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        right = None if self.right is None else self.right.to_dict()
        against = {name: found.to_dict() for name, found in self.against.items()}
        return {"plan": self.plan, "prompts": self.prompts, "right": right, "nll": self.nll.to_dict()} | {
            "against": against
        }


@dataclass(frozen=True)
class Comparison:
    """All plans under one condition, in the order of the config; plans without a single prompt are left out."""

    condition: Condition
    baselines: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, plan: str) -> Row | None:
        """A plan's row, if it has one."""
        return next((row for row in self.rows if row.plan == plan), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        rows = [row.to_dict() for row in self.rows]
        return dataclasses.asdict(self.condition) | {"baselines": list(self.baselines), "plans": rows}


def compare(
    condition: Condition,
    found: Mapping[str, Sequence[Cell]],
    baselines: Sequence[str],
    in_a_draw: Mapping[str, int] | None = None,
) -> Comparison:
    """A row for each plan of `found`, its cells under one condition, and its differences to each of the baselines.

    Args:
        in_a_draw: how many of a task's prompts in a row are one independent draw, by the task's reference; 1 for
            those that aren't named.

    Raises:
        ArgumentError: a cell of a prompt that searches choose by: what chose must not judge.
    """
    table = {plan: _by_prompt(cells) for plan, cells in found.items() if cells}
    for plan, by_prompt in table.items():
        for _, prompt in by_prompt:
            if prompt < REPORT_FIRST:
                remedy = f"prompts under {REPORT_FIRST} are for choosing; compare on later ones"
                raise ArgumentError("prompt", prompt, f"{plan}: {remedy}")
    given = [name for name in baselines if name in table]
    draws = in_a_draw or {}
    pairs = {name: _against(table, name, draws) for name in given}
    rows = []
    for plan, by_prompt in table.items():
        cells = list(by_prompt.values())
        counts, means, right = _numbers(cells, draws)
        share = None if cells[0].right is None else share_of(right, counts)
        against = {name: pairs[name][plan] for name in given if plan in pairs[name]}
        rows.append(Row(plan, len(cells), share, mean_of(means, counts), against))
    return Comparison(condition, tuple(given), tuple(rows))


def summarise(cells: Cells) -> list[Comparison]:
    """Every comparison that a folder holds, without its config: names are those of its definitions.

    The baseline is the plan called `plain`. Prompts that searches choose by are left out. Models, tasks and plans that
    several configs called the same are told apart by the start of their references.
    """
    groups: dict[_Where, dict[str, list[Cell]]] = {}
    conditions: dict[tuple[str, str], _Where] = {}
    plans: dict[str, str] = {}
    for cell in cells.cells.values():
        if cell.prompt < REPORT_FIRST:
            continue
        where = cell.model, cell.task
        if where not in conditions:
            conditions[where] = _where(cells, *where)
        if cell.plan not in plans:
            plans[cell.plan] = cells.definition("plan", cell.plan).get("name", cell.plan)
        groups.setdefault(conditions[where], {}).setdefault(cell.plan, []).append(cell)
    found = []
    draws = {task: prompts_a_draw(cells.definition("task", task).get("content", {})) for _, task in conditions}
    for place, by_plan in groups.items():
        names = [plans[plan] for plan in by_plan]
        # Two encodings may have been called the same in two configs.
        called = {p: n if names.count(n) == 1 else f"{n} ({p[:8]})" for p, n in zip(by_plan, names, strict=True)}
        table = {called[plan]: held for plan, held in by_plan.items()}
        found.append(compare(_condition(place, list(groups)), table, [PLAIN], draws))
    return found


@dataclass(frozen=True)
class _Where:
    """What cells are compared under: references, as names can stand for several, of the task but for its seeds."""

    model: str
    task: str
    called: Condition


def _where(cells: Cells, model: str, task: str) -> _Where:
    defined = cells.definition("task", task)
    content = defined.get("content", {})
    name = cells.definition("model", model).get("name", model)
    together = reference(of_all_seeds(content))
    return _Where(model, together, Condition(name, defined.get("name", task), int(content.get("length", 0))))


def _condition(place: _Where, places: Sequence[_Where]) -> Condition:
    """The condition by its names, each with its reference where it stands for another one too."""
    called = place.called
    models = {other.model for other in places if other.called.model == called.model}
    tasks = {other.task for other in places if (other.model, other.called) == (place.model, called)}
    return dataclasses.replace(
        called,
        model=called.model if len(models) == 1 else f"{called.model} ({place.model[:8]})",
        task=called.task if len(tasks) == 1 else f"{called.task} ({place.task[:8]})",
    )


def _by_prompt(cells: Sequence[Cell]) -> dict[tuple[str, int], Cell]:
    """Cells by task, which holds the seed, and prompt, in one order for all plans."""
    return {(cell.task, cell.prompt): cell for cell in sorted(cells, key=lambda c: (c.task, c.prompt))}


def _numbers(cells: Sequence[Cell], in_a_draw: Mapping[str, int]) -> tuple[Numbers, Numbers, Numbers]:
    """(answers, mean NLL, right answers) of each independent draw, in the order of the cells."""
    sums: dict[tuple[str, int], Numbers] = {}
    for cell in cells:
        draw = cell.task, (cell.prompt - REPORT_FIRST) // in_a_draw.get(cell.task, 1)
        sums[draw] = sums.get(draw, 0.0) + np.array([cell.n, cell.n * cell.nll, cell.right or 0], dtype=np.float64)
    held = np.array(list(sums.values()))
    return held[:, 0], held[:, 1] / held[:, 0], held[:, 2]


def _against(
    table: Mapping[str, Mapping[tuple[str, int], Cell]], baseline: str, in_a_draw: Mapping[str, int]
) -> dict[str, Against]:
    """Each other plan's difference to a baseline, p-values corrected for their number."""
    theirs = table[baseline]
    found: dict[str, tuple[Estimate, float]] = {}
    for plan, ours in table.items():
        shared = [key for key in ours if key in theirs]
        if plan == baseline or not shared:
            continue
        counts, means, _ = _numbers([ours[key] for key in shared], in_a_draw)
        found[plan] = difference_of(means, _numbers([theirs[key] for key in shared], in_a_draw)[1], counts)
    adjusted = holm([p for _, p in found.values()])
    return {
        plan: Against(difference, p, corrected)
        for (plan, (difference, p)), corrected in zip(found.items(), adjusted, strict=True)
    }


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
