"""The page that a comparison of trained encodings ends with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ropewalk.evaluation.provenance import provenance
from ropewalk.files import one_line_errors, write_atomically
from ropewalk.report.markdown import write_pages
from ropewalk.report.page import Download, Folded, Page, Paragraph, Part, Picture, Reproduce, Section, Table
from ropewalk.report.training import draw_curves, facts, header, rows, title
from ropewalk.training.compare import Comparison
from ropewalk.training.figures import figure_text
from ropewalk.training.folder import RunFolder
from ropewalk.training.run import left_out

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
