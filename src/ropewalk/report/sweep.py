"""What a sweep found: tables, a summary and a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.evaluation.cells import Cell, Cells
from ropewalk.evaluation.comparison import Against, Comparison, Row
from ropewalk.evaluation.provenance import made_with
from ropewalk.evaluation.search import Pick
from ropewalk.evaluation.statistics import Answer, Estimate
from ropewalk.evaluation.sweep_config import PLAIN
from ropewalk.evaluation.sweep_run import Outcome
from ropewalk.hub.model_card import Figure, card, plain
from ropewalk.io import write_atomically
from ropewalk.report.kit.format import ALIKE, rounded, signed
from ropewalk.report.kit.heat_maps import SHARES
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import Download, Folded, HeatMaps, Page, Paragraph, Part, Reproduce, Section, Table
from ropewalk.tasks.base import NOWHERE

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


# Of the plans that are best somewhere, that many are named in the verdict.
_NAMED = 3
# Cells of more characters (of ASCII) would make a page slow to open and to pass on; they lie beside it.
MOST_INSIDE = 8 * 1024 * 1024
_CELLS = "cells.jsonl"
_ONE_DRAW = "[one draw: no interval]"
_HOW = (
    "Brackets are 95 % intervals; prompts, not questions, count as independent, and all prompts of one many-shot "
    "problem as one. Differences are in answer NLL, nats a token, on the prompts that both plans have: below 0 the "
    "right answers are likelier. p is Holm's, over all plans compared with the same baseline under one condition. "
    "Best under a condition is the best rule if it is better than plain beyond chance, unless plans are better than it "
    "too; then, and without such a rule, of the better plans the one whose right answers are the likeliest."
)


def write_report(outcome: Outcome, cells: Cells, command: str, folder: Path, more: Sequence[Part] = ()) -> None:
    """Write summary.md, summary.json, card.md and report.html, each whole or not at all; `more` stands on the pages.

    The page has all cells in it; those of more than 8 MiB are a cells.jsonl beside it.
    """
    lines = cell_lines(outcome, cells)
    if len(lines) > MOST_INSIDE:
        write_atomically(folder / _CELLS, lines)
    content = json.dumps(to_dict(outcome, command), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "summary.json", content)
    write_atomically(folder / "card.md", model_card(outcome, command))
    write_pages(page(outcome, cells, command, content, lines, more), folder)


def header(comparison: Comparison) -> tuple[str, ...]:
    """The columns of a comparison's table."""
    against = tuple(f"against {name}" for name in comparison.baselines)
    asked = ("answers right",) if _asks(comparison) else ()
    return ("plan", *asked, "NLL, nats a token", *against)


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row a plan, as text."""
    return [_cells(comparison, row) for row in comparison.rows]


def title(comparison: Comparison) -> str:
    """What a comparison is about."""
    where = comparison.condition
    prompts = sorted({row.prompts for row in comparison.rows})
    counted = " to ".join(str(n) for n in dict.fromkeys((prompts[0], prompts[-1]))) if prompts else "no"
    return f"{where.model}: {where.task}, {where.length:,} tokens, {counted} prompt{'s' * (counted != '1')}"


def verdict(outcome: Outcome) -> str:
    """What is better than plain, and than the best rule, beyond chance, and what is best: two sentences."""
    conditions = len(outcome.comparisons)
    said = [_against_all(outcome, PLAIN, "plain")]
    if any(pick.rule for pick in outcome.picks):
        said.append(_against_all(outcome, None, "the best rule"))
    plans = len({row.plan for comparison in outcome.comparisons for row in comparison.rows})
    under = f"{conditions} condition{'s' * (conditions != 1)}"
    count = f"{plans} plan{'s' * (plans != 1)} under {under}"
    return f"{count}; beyond chance, corrected within each condition: {'; '.join(said)}.{_best(outcome)}"


def to_dict(outcome: Outcome, command: str) -> dict[str, Any]:
    """All figures, JSON-ready."""
    return {
        "verdict": verdict(outcome),
        "command": command,
        "models": outcome.models,
        "comparisons": [comparison.to_dict() for comparison in outcome.comparisons],
        "picks": [
            {"model": p.model, "length": p.length, "rule": p.rule, "plans": [plan.name for plan in p.plans]}
            | {"prompts": p.prompts, "tried": [{"plan": name, "nll": nll} for name, nll in p.tried]}
            for p in outcome.picks
        ],
        "facts": facts(outcome),
    }


def model_card(outcome: Outcome, command: str) -> str:
    """A README.md for a repository on the Hugging Face Hub: every figure as a table and as the hub's metadata."""
    models = [entry.name for entry in outcome.config.models]
    figures = []
    for comparison in outcome.comparisons:
        where = comparison.condition
        task = f"{where.task}, {where.length:,} tokens" + f", {where.model}" * (len(models) > 1)
        for row in comparison.rows:
            if row.right is not None:
                figures.append(_figure(row, task, "exact", row.right))
            figures.append(_figure(row, task, "nll" if row.right is not None else "text_nll", row.nll))
    about = f"{plain(verdict(outcome))}\n\n```bash\n{command}\n```"
    return card(f"Sweep: {', '.join(models)}", about, figures, models[0] if len(models) == 1 else None)


def page(outcome: Outcome, cells: Cells, command: str, raw: str, lines: str, more: Sequence[Part] = ()) -> Page:
    """The page; to be downloaded are `raw`, the summary's JSON, and `lines`, the cells. `more` it shows before that."""
    parts: list[Part] = [Paragraph(_HOW)]
    for comparison in outcome.comparisons:
        parts += [Section(title(comparison)), Table(header(comparison), rows(comparison))]
    drawn = maps(outcome, cells)
    parts += [Section("By depth and length"), *drawn] if drawn else []
    picked = [pick for pick in outcome.picks if pick.tried]
    if picked:
        parts.append(Section("What was picked, on prompts of its own"))
        for pick in picked:
            parts.append(Paragraph(_pick_line(pick)))
            parts.append(Table(("plan", "mean answer NLL"), _tried(pick)))
    parts += [*more, Section("How this was made"), Reproduce(command, facts(outcome))]
    parts.append(Download("summary.json", raw.encode(), "application/json"))
    if len(lines) > MOST_INSIDE:
        parts.append(Paragraph(f"Every cell, with its answers, is in {_CELLS} beside this page."))
    else:
        parts.append(Download(_CELLS, lines.encode(), "application/jsonl"))
    models = ", ".join(entry.name for entry in outcome.config.models)
    return Page(f"Sweep: {models}", verdict(outcome), parts)


def cell_lines(outcome: Outcome, cells: Cells) -> str:
    """Every cell that plans were compared on as JSON lines: what it is of, its figures and its answers."""
    lines = []
    for (model, task, length), found in outcome.cells.items():
        for plan, held in found.items():
            for cell in held:
                content = cells.definition("task", cell.task).get("content", {})
                seed = {name: content[name] for name in ("seed", "rank") if name in content}
                of = {"model": model, "task": task, "length": length, "plan": plan} | seed
                figures = {name: getattr(cell, name) for name in ("prompt", "n", "right", "nll", "seconds", "key")}
                answers = [answer.to_dict() for answer in cells.answers(cell)]
                lines.append(json.dumps(of | figures | {"answers": answers}, allow_nan=False) + "\n")
    return "".join(lines)


def facts(outcome: Outcome) -> dict[str, str]:
    """What else decides the figures."""
    config = outcome.config
    found = {"seeds": ", ".join(map(str, config.seeds)), "prompts a seed": str(config.prompts)}
    for about in outcome.models:
        found[f"fingerprint of {about['name']}"] = str(about["fingerprint"])[:16]
    for name, fingerprint in outcome.texts.items():
        found[f"SHA-256 of {name}"] = fingerprint[:16]
    return found | made_with()


def _figure(row: Row, task: str, metric: str, estimate: Estimate) -> Figure:
    low, high = (bound if math.isfinite(bound) else None for bound in (estimate.low, estimate.high))
    return Figure(row.plan, task, metric, estimate.mean, low, high, row.prompts)


def _cells(comparison: Comparison, row: Row) -> tuple[str, ...]:
    right = [_share(row.right)] if row.right is not None else []
    against = [_difference(row.against.get(name)) for name in comparison.baselines]
    return (row.plan, *right, f"{row.nll.mean:.3f} {_interval(row.nll, 0.0)}", *against)


def _asks(comparison: Comparison) -> bool:
    """Whether a condition's task has questions: all its plans have the same prompts."""
    return any(row.right is not None for row in comparison.rows)


def _share(right: Estimate) -> str:
    interval = f"[{right.low:.2f}, {right.high:.2f}]" if right.is_clustered else _ONE_DRAW
    return f"{round(right.mean * right.n)} of {right.n} {interval}"


def _difference(against: Against | None) -> str:
    if against is None:
        return ""
    mark = " better" if against.is_better else " worse" if against.is_worse else ""
    p = f", p {against.adjusted:.2g}" if against.difference.is_clustered else ""
    return f"{signed(against.difference.mean)} {_interval(against.difference)}{p}{mark}"


def _interval(estimate: Estimate, least: float = -math.inf) -> str:
    if math.isinf(estimate.high):
        return ALIKE if estimate.is_clustered else _ONE_DRAW
    return f"[{rounded(max(least, estimate.low))}, {rounded(estimate.high)}]"


def _against_all(outcome: Outcome, baseline: str | None, name: str) -> str:
    """How many comparisons with a baseline (None: the picked rule) came out better and worse."""
    rules = _rules(outcome)
    better = worse = total = 0
    for comparison in outcome.comparisons:
        where = comparison.condition
        wanted = baseline or rules.get((where.model, where.length))
        found = [row.against[wanted] for row in comparison.rows if wanted and wanted in row.against]
        total += len(found)
        better += sum(against.is_better for against in found)
        worse += sum(against.is_worse for against in found)
    return f"of {total} comparisons with {name} {better} are better and {worse} worse"


def _rules(outcome: Outcome) -> dict[tuple[str, int], str | None]:
    """The picked rule by model and length."""
    return {(pick.model, pick.length): pick.rule for pick in outcome.picks}


def _best(outcome: Outcome) -> str:
    """A sentence that names what is best, and under how many conditions; none where nothing is compared with plain."""
    rules, total = _rules(outcome), len(outcome.comparisons)
    found = [_best_of(c, rules.get((c.condition.model, c.condition.length))) for c in outcome.comparisons]
    counted = Counter(name for name in found if name is not None).most_common()
    if not counted:
        is_compared = any(PLAIN in row.against for comparison in outcome.comparisons for row in comparison.rows)
        return " Nothing is better than plain." if is_compared else ""
    if total == 1:
        return f" Best: {counted[0][0]}."
    said = [f"{name} ({n} of {total}{'' if i else ' conditions'})" for i, (name, n) in enumerate(counted[:_NAMED])]
    others = len(counted) - _NAMED
    return f" Best: {', '.join(said)}" + (f" and {others} other{'s' * (others > 1)}." if others > 0 else ".")


def _best_of(comparison: Comparison, rule: str | None) -> str | None:
    """What to take under a condition, if anything is better than plain; `rule`, unless something is better than it."""
    better = [row for row in comparison.rows if PLAIN in row.against and row.against[PLAIN].is_better]
    if rule is not None and any(row.plan == rule for row in better):
        better = [row for row in better if rule in row.against and row.against[rule].is_better]
        return min(better, key=_nll_against_plain).plan if better else rule
    return min(better, key=_nll_against_plain).plan if better else None


def _nll_against_plain(row: Row) -> float:
    return row.against[PLAIN].difference.mean


def _pick_line(pick: Pick) -> str:
    words = [f"{pick.model}, {pick.length:,} tokens, {pick.prompts} prompt{'s' * (pick.prompts != 1)} of each task:"]
    words.append(f"best rule {pick.rule}" if pick.rule else "no rule")
    return " ".join(words) + "".join(f"; best plan {plan.name}" for plan in pick.plans) + "."


def _tried(pick: Pick) -> list[tuple[str, str]]:
    return [(name, f"{nll:.3f}") for name, nll in pick.tried]
