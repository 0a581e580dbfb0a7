"""Heat maps of a sweep: the share of right answers by length and depth, a map a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.compare import Comparison
from ropewalk.evaluation.score import Answer
from ropewalk.evaluation.sweep_run import Outcome
from ropewalk.report.heat_maps import SHARES
from ropewalk.report.page import Folded, HeatMaps, Part
from ropewalk.tasks.prompts import NOWHERE

# More maps than this nobody looks at; those of the plans with the likeliest answers are shown, the others folded.
MOST_MAPS = 9
_Panels = Mapping[str, Sequence[Sequence[float | None]]]


def maps(outcome: Outcome, cells: Cells) -> list[Part]:
    """The maps of each model and task with more than one depth; those of plans that are far behind are folded."""
    found: list[Part] = []
    for model in dict.fromkeys(c.condition.model for c in outcome.comparisons):
        for task in dict.fromkeys(c.condition.task for c in outcome.comparisons):
            here = [c for c in outcome.comparisons if (c.condition.model, c.condition.task) == (model, task)]
            lengths = [c.condition.length for c in here]
            held = {n: outcome.cells[model, task, n] for n in lengths}
            answers = {
                (row.plan, c.condition.length): _answers(cells, held[c.condition.length][row.plan])
                for c in here
                for row in c.rows
                if row.right is not None
            }
            depths = sorted({answer.depth for given in answers.values() for answer in given})
            if len(depths) > 1:
                panels = {
                    plan: [[_right_at(answers.get((plan, n), ()), depth) for depth in depths] for n in lengths]
                    for plan in _plans(here)
                }
                found += _figures(f"{model}: {task}", lengths, depths, panels, _shown(here))
    return found


def _figures(
    heading: str, lengths: Sequence[int], depths: Sequence[float], panels: _Panels, shown: Sequence[str]
) -> list[Part]:
    """A figure of the maps that are shown and, out of sight, one of the others."""
    names = ["nowhere" if depth == NOWHERE else f"{depth:.2f}" for depth in depths]
    rows = [f"{n:,}" for n in lengths]

    def figure(title: str, plans: Sequence[str], caption: str = "") -> HeatMaps:
        those = {plan: panels[plan] for plan in plans}
        unit = "share of right answers"
        return HeatMaps(title, "tokens", rows, "depth", names, those, unit, caption=caption, limits=SHARES)

    rest = [plan for plan in panels if plan not in shown]
    if not rest:
        return [figure(heading, shown)]
    kept = "Shown are those that others are compared with and those with the likeliest answers"
    said = f"{kept}; {len(rest)} of {len(panels)} plans are folded below."
    # A map by itself has no heading of its own.
    inside = heading if len(rest) > 1 else f"{heading}, {rest[0]}"
    folded = Folded(f"{heading}: {len(rest)} further plan{'s' * (len(rest) > 1)}", [figure(inside, rest)])
    return [figure(heading, shown, said), folded]


def _plans(comparisons: Sequence[Comparison]) -> list[str]:
    """Every plan, in the table's order."""
    return list(dict.fromkeys(row.plan for c in comparisons for row in c.rows))


def _shown(comparisons: Sequence[Comparison]) -> list[str]:
    """The plans whose maps are shown: the baselines, then those with the lowest NLL, in the table's order."""
    every = _plans(comparisons)
    baselines = {name for c in comparisons for name in c.baselines}

    def rank(plan: str) -> tuple[bool, float]:
        held = [row.nll.mean for c in comparisons if (row := c.row(plan)) is not None]
        return plan not in baselines, sum(held) / len(held)

    kept = set(sorted(every, key=rank)[:MOST_MAPS])
    return [plan for plan in every if plan in kept]


def _answers(cells: Cells, held: Sequence[Cell]) -> list[Answer]:
    return [answer for cell in held for answer in cells.answers(cell)]


def _right_at(answers: Sequence[Answer], depth: float) -> float | None:
    here = [answer.is_exact for answer in answers if answer.depth == depth]
    return sum(here) / len(here) if here else None
