"""What a comparison of encodings found: a table with every seed, and the curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from ropewalk.evaluation.provenance import made_with, provenance
from ropewalk.evaluation.statistics import Estimate
from ropewalk.io import one_line_errors, write_atomically
from ropewalk.report.kit.colours import COLOURS
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import Download, Folded, Page, Paragraph, Part, Picture, Reproduce, Section, Table
from ropewalk.report.needle_figures import finish
from ropewalk.training.compare import Comparison
from ropewalk.training.metrics import figure_text
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.runner import left_out

# Lines are told apart in grey too: the first six differ in both, later ones in one of the two.
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_UNITS = {"accuracy": "share of sequences all right", "nll": "nats a labelled token"}


def header(comparison: Comparison) -> tuple[str, ...]:
    """The table's columns."""
    seeds = tuple(f"seed {seed}" for seed in range(comparison.seeds))
    return ("encoding", *seeds, "mean", "numbers learned", "seconds a run", "waiting for data")


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row for each encoding that has a result, in the order asked for; a run that isn't finished has a dash."""
    found, metric = [], comparison.task.metric
    for name in comparison.names:
        results = comparison.of(name)
        if not results:
            continue
        by_seed = {r.seed: r for r in results}
        cells = []
        for seed in range(comparison.seeds):
            result = by_seed.get(seed)
            mark = f" (diverged at {result.diverged:,})" if result is not None and result.diverged else ""
            cells.append("–" if result is None else _bracketed(result.value, result.interval, metric) + mark)
        seconds = sum(r.seconds for r in results) / len(results)
        waiting = max(r.waiting for r in results)
        mean = _bracketed(comparison.mean(name), comparison.estimate(name) if len(results) > 1 else None, metric)
        found.append((name, *cells, mean, f"{results[0].parameters:,}", f"{seconds:,.0f}", f"{waiting:.1%}"))
    return found


def title(comparison: Comparison) -> str:
    """One line on what the table's figures are, and what stands in brackets."""
    recipe = comparison.recipe
    unit = _UNITS[comparison.task.metric]
    steps = f"{recipe.steps:,} steps of {recipe.batch}"
    return f"{recipe.task}, {recipe.size} recipe, {steps}: {unit}, test set{_brackets(comparison)}"


def facts(comparison: Comparison) -> dict[str, str]:
    """What else than the command decides the figures."""
    recipe, model = comparison.recipe, comparison.recipe.model
    fields = ", ".join(f"{name}={value!r}" for name, value in comparison.task.to_dict().items() if name != "name")
    return {
        "task": f"{recipe.task} ({fields})",
        "model": f"{model.hidden} channels, {model.heads} heads ({model.key_heads} of keys), {model.layers} layers, "
        f"MLP {model.mlp}, dropout {model.dropout}, first weights {model.initial:g} wide",
        "schedule": recipe.described(),
        "seeds": f"0 to {comparison.seeds - 1}" if comparison.seeds > 1 else "0",
        **made_with(),
    }


def draw_curves(comparison: Comparison, path: Path) -> None:
    """The metric on validation data against steps: one colour and dash an encoding, one thin line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    metric = comparison.task.metric
    for name, (dashes, colour) in zip(comparison.names, _styles(), strict=False):
        label = name
        for result in comparison.of(name):
            points = RunFolder.of(comparison.out, name, result.seed).curve()
            seen = [(p["step"], p["metric"]) for p in points if p.get("metric") is not None]
            axes.plot(
                *zip(*seen, strict=True) if seen else ([], []),
                color=colour,
                linestyle=dashes,
                linewidth=1.1,
                marker="o" if len(seen) == 1 else None,  # a line of one point can't be seen
                label=label,
            )
            label = "_" + name  # one entry an encoding in the legend
    finish(axes, "steps", f"{_UNITS[metric]}, validation")
    if metric == "accuracy":
        axes.set_ylim(-0.03, 1.03)
    axes.set_title(f"{comparison.recipe.task}, {comparison.recipe.size} recipe, a line a seed", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, handlelength=3.5)
    figure.savefig(path, dpi=150)


def _bracketed(value: float | None, interval: Estimate | None, metric: str) -> str:
    """A figure, and its interval within what the metric can be, if there is one."""
    text = figure_text(value, metric)
    if interval is None:
        return text
    if metric == "accuracy":
        return f"{text} [{100 * max(0.0, interval.low):.1f}, {100 * min(1.0, interval.high):.1f}]"
    return f"{text} [{max(0.0, interval.low):.4f}, {interval.high:.4f}]"


def _brackets(comparison: Comparison) -> str:
    """What the table's brackets are, as far as it has some."""
    of_runs = [r.interval for r in comparison.results if r.interval is not None]
    of_means = [e for name in comparison.names if (e := comparison.estimate(name)) is not None and e.is_clustered]
    said = [f"of a run Wilson's over its {of_runs[0].n:,} test sequences"] if of_runs else []
    if of_means:
        said.append("of a mean Student's t over seeds" + ", cut off at 0 and 100 %" * bool(of_runs))
    return f"; brackets: 95 % intervals, {', '.join(said)}" if said else ""


def _styles() -> Iterator[tuple[Any, str]]:
    """Pairs of dashes and colour, the grey last: first one of each together, then the rest of all pairs."""
    colours = (*COLOURS[1:], COLOURS[0])
    first = list(zip(_DASHES, colours, strict=True))
    yield from first
    yield from (pair for pair in product(_DASHES, colours) if pair not in first)


_PICTURE, _CURVES = "curves.png", "curves.jsonl"


def write_report(comparison: Comparison, command: str) -> None:
    """Write summary.json, curves.jsonl, curves.png, summary.md and report.html into the comparison's folder.

    Args:
        comparison: what has come out so far; needn't be all.
        command: the command line that trained it.

    Raises:
        ArgumentError: a file can't be read or written.
    """
    out = comparison.out
    raw = json.dumps(comparison.to_dict() | {"command": command} | provenance(), indent=2) + "\n"
    write_atomically(out / "summary.json", raw)
    curves = "".join(json.dumps(point) + "\n" for point in curve_points(comparison))
    write_atomically(out / _CURVES, curves)
    with one_line_errors(out / _PICTURE):
        draw_curves(comparison, out / _PICTURE)
        picture = (out / _PICTURE).read_bytes()
    write_pages(training_page(comparison, command, picture, raw, curves), out)


def curve_points(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """The points of all finished runs' curves, each with its encoding and seed."""
    for name in comparison.names:
        for result in comparison.of(name):
            for point in RunFolder.of(comparison.out, name, result.seed).curve():
                yield {"encoding": name, "seed": result.seed, **point}


def training_page(comparison: Comparison, command: str, picture: bytes, raw: str, curves: str) -> Page:
    """The page of a comparison, with the picture of its curves, its summary's JSON and its curves' JSON lines."""
    alt = f"The metric on validation data against steps, a line a seed, for {', '.join(comparison.names)}."
    parts: list[Part] = [
        Section("Every seed"),
        Table(header(comparison), rows(comparison), title(comparison)),
        Paragraph("One seed means the same initial weights and the same order of data for all encodings."),
        Section("Curves"),
        Picture(picture, "png", alt, name=_PICTURE),
        Section("How this was made"),
        Reproduce(command, facts(comparison)),
        *_left_out(comparison),
        Download("summary.json", raw.encode(), "application/json"),
        Download(_CURVES, curves.encode(), "application/jsonl"),
    ]
    recipe = comparison.recipe
    names = ", ".join(comparison.names)
    return Page(f"{recipe.task}, {recipe.size} recipe: {names}", verdict(comparison), parts)


def _left_out(comparison: Comparison) -> list[Part]:
    """Every file that can't be used and why, out of sight."""
    problems = left_out(comparison.task)
    if not problems:
        return []
    heading = f"{len(problems)} file{'s' * (len(problems) > 1)} left out"
    return [Folded(heading, [Table(("file and reason",), [(problem,) for problem in problems])])]


def verdict(comparison: Comparison) -> str:
    """Which encoding has the best mean, whether its seeds and those of the next one lie apart, and what has no mean."""
    lost = [name for name in comparison.names if comparison.of(name) and comparison.mean(name) is None]
    said = _ranking(comparison)
    return f"{said} Without a mean, as a run came to no number: {', '.join(lost)}." if lost else said


def _ranking(comparison: Comparison) -> str:
    metric = comparison.task.metric
    sign = -1 if metric == "accuracy" else 1
    means = {name: comparison.mean(name) for name in comparison.names}
    ranked = sorted((sign * mean, name) for name, mean in means.items() if mean is not None)
    if not ranked:
        return "No encoding has a mean yet."
    best = ranked[0][1]
    seeds = len(comparison.of(best))
    said = f"{best}: {figure_text(means[best], metric)}, mean of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    if len(ranked) == 1:
        return f"{said}; there is no other to compare it with."
    second = ranked[1][1]
    said = f"The best mean has {said}; then {second} with {figure_text(means[second], metric)}"
    if min(seeds, len(comparison.of(second))) < 2:
        return f"{said}. One seed says little: others may turn this round."
    worst = max(sign * r.value for r in comparison.of(best) if r.value is not None)
    closest = min(sign * r.value for r in comparison.of(second) if r.value is not None)
    if worst < closest:
        return f"{said}, all of whose seeds are behind all of {best}'s."
    return f"{said}, whose seeds overlap with {best}'s."
