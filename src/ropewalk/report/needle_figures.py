"""Pictures of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.evaluation.statistics import Answer
from ropewalk.report.kit.colours import COLOURS, line_style
from ropewalk.tasks.base import NOWHERE

if TYPE_CHECKING:
    from ropewalk.evaluation.extend import Outcome

DEPTH = "needle depth (0 = start of the haystack)"


def draw_final(outcome: Outcome, path: Path) -> None:
    """Two panels by needle depth, a line an arm: share of right answers, and answer NLL. PNG or SVG by suffix."""
    answers = {name: list(found) for name, found in outcome.final.items()}
    title = f"{outcome.job.target_length:,} tokens, {outcome.job.setting} setting"
    draw_by_depth(answers, title, path)


def draw_by_depth(answers: dict[str, list[Answer]], title: str, path: Path) -> None:
    """The same for any named sets of answers to the same prompts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, found) in enumerate(answers.items()):
        # Lines get thinner, so that one that lies on another doesn't hide it.
        style = line_style(number) | {
            "color": COLOURS[number % len(COLOURS)],
            "linewidth": max(1.2, 3.6 - 1.0 * number),
            "markersize": max(3.5, 7.0 - 1.5 * number),
        }
        means = by_depth(found)
        depths, exact, nll = list(means), [m[0] for m in means.values()], [m[1] for m in means.values()]
        label = f"{name} (n={len(found)})"
        left.plot(depths, exact, label=label, **style)
        right.plot(depths, nll, label=label, **style)
    finish(left, DEPTH, "share of right answers")
    left.set_ylim(-0.03, 1.03)
    finish(right, DEPTH, "answer NLL, nats per token")
    right.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def by_depth(answers: Sequence[Answer]) -> dict[float, tuple[float, float]]:
    """Depth -> (share of right answers, mean NLL in nats a token), depths ascending; without what stood nowhere."""
    found = {}
    for depth in sorted({a.depth for a in answers} - {NOWHERE}):
        here = [a for a in answers if a.depth == depth]
        found[depth] = _mean([float(a.is_exact) for a in here]), _mean([a.nll for a in here])
    return found


def finish(axes: Any, across: str, up: str) -> None:
    """Labels, a faint grid and no frame: the look of all pictures."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
