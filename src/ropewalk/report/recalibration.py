"""What a recalibration found: what the swap cost, what came back, and the curve between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.evaluation.provenance import made_with
from ropewalk.evaluation.statistics import Estimate
from ropewalk.report.kit.colours import COLOURS
from ropewalk.report.kit.format import rounded, signed
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import Download, Page, Paragraph, Part, Picture, Reproduce, Section, Table
from ropewalk.report.needle_figures import finish
from ropewalk.training.held_out import HeldOut
from ropewalk.training.recalibrate import Outcome, Recalibration
from ropewalk.training.run_folder import RunFolder
from ropewalk.training.swap import OWN

_PICTURE = "curves.png"
_RAW = {"result.json": "application/json", "curve.jsonl": "application/jsonl"}


def header(wanted: Recalibration, outcome: Outcome) -> tuple[str, ...]:
    """The table's columns."""
    lengths = [f"at {k * wanted.length:,} tokens" for k in _multiples(outcome)]
    return ("", "validation", *lengths, f"change at {wanted.length:,}")


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The model as it was, right after the swap if there was one, and at the end."""
    found = [("as it was", outcome.as_it_was), ("right after the swap", outcome.after_swap)]
    found.append((f"after {outcome.steps:,} steps", outcome.after))
    if outcome.as_it_was == outcome.after_swap:
        del found[1]
    lines = []
    for name, held in found:
        change = "" if held is outcome.as_it_was else _estimate(held.against(outcome.as_it_was, 1), signed)
        lengths = [_estimate(held.at(k)) for k in _multiples(outcome)]
        lines.append((name, _number(held.validation), *lengths, change))
    return lines


def verdict(wanted: Recalibration, outcome: Outcome) -> str:
    """In a sentence: what the swap cost at the length of training, and how much of it came back in which time."""
    before, swapped, after = (held.at(1) for held in (outcome.as_it_was, outcome.after_swap, outcome.after))
    effort = f"{outcome.steps:,} steps ({outcome.tokens:,} tokens, {outcome.seconds:,.0f} s)"
    if outcome.diverged is not None:
        return f"The loss was no longer a number at step {outcome.diverged:,}: try a lower learning rate."
    if before is None or swapped is None or after is None:
        return f"A loss isn't a number, so nothing can be said about {effort}."
    if outcome.recovered is None:
        kept = "The encoding is as it was" if wanted.encoding == OWN else f"Swapping to {outcome.encoding} cost nothing"
        change = f"{signed(after.mean - before.mean)} nats a token at {wanted.length:,} tokens"
        return f"{kept}; {effort} changed the loss by {change}, from {before.mean:.3f} to {after.mean:.3f}."
    cost = f"{swapped.mean - before.mean:.3f} nats a token at {wanted.length:,} tokens"
    back = f"{outcome.recovered:.0%} of it: {after.mean:.3f} against {before.mean:.3f} before"
    return f"Swapping to {outcome.encoding} cost {cost}; {effort} won back {back}."


def held_out(outcome: Outcome) -> str:
    """What can be said of the parts that are judged on: they ..."""
    if outcome.read_before:
        return "this run isn't trained on; the model's own run cut the same text elsewhere and may have read them"
    return "nothing here is trained on"


def facts(wanted: Recalibration, outcome: Outcome, run: dict[str, Any]) -> dict[str, str]:
    """What else than the command decides the figures; `run` is what the folder's run.json says."""
    return {
        "model": f"{wanted.model}, fingerprint {run['model']['fingerprint']}",
        "encoding": f"{run['encoding'] or 'as it was'}",
        "text": f"{wanted.text}, SHA-256 {run.get('data_sha256')}; 90 % to train on, 5 % validation, 5 % test",
        "training": f"{outcome.steps:,} steps of {wanted.batch} sequences of {wanted.length:,} tokens, seed "
        f"{outcome.seed}; {wanted.course().described()}",
        "numbers learned": f"{outcome.parameters:,}, {outcome.own_parameters:,} of them the encoding's",
        "time": f"{outcome.seconds:,.0f} s with its evaluations, {outcome.waiting:.1%} of it waiting for data",
        **made_with(),
    }


def page(
    wanted: Recalibration,
    outcome: Outcome,
    run: dict[str, Any],
    command: str,
    picture: bytes,
    raw: Mapping[str, bytes],
) -> Page:
    """The page; `run` is what the folder's run.json says, `raw` the folder's other files by name, to be downloaded."""
    held, furthest = outcome.after, max(_multiples(outcome))
    counts = {k: len(held.windows[k]) for k in (1, furthest) if k in held.windows}
    read = " and ".join(f"{count} of {k * wanted.length:,} tokens" for k, count in counts.items())
    parts: list[Part] = [
        Table(header(wanted, outcome), rows(outcome)),
        Paragraph(
            f"Nats a token of {wanted.text}, of parts that {held_out(outcome)}. At N tokens: the last "
            f"{wanted.length:,} before position N, mean and 95 % interval over windows of the test part ({read}). "
            "Change: against the model as it was, window by window."
        ),
        Section("The course"),
        Picture(picture, "png", "Training and validation loss against steps", name=_PICTURE),
        Section("How this was made"),
        Reproduce(command, facts(wanted, outcome, run)),
        *(Download(name, content, _RAW[name]) for name, content in raw.items()),
    ]
    heading = f"{wanted.model}: {wanted.encoding}, {outcome.steps:,} steps"
    return Page(heading, verdict(wanted, outcome), parts)


def draw_curves(wanted: Recalibration, outcome: Outcome, points: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss against steps, with level lines for the model as it was and right after the swap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    grey, blue, orange, green = COLOURS[:4]
    trained = [(p["step"], p["loss"]) for p in points if p.get("loss") is not None]
    seen = [(0, outcome.after_swap.validation)]
    seen += [(p["step"], p["metric"]) for p in points if p.get("metric") is not None]
    seen = [point for point in seen if point[1] is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), color=grey, linewidth=1.0, label="training")
    if seen:
        axes.plot(*zip(*seen, strict=True), color=blue, linewidth=1.6, marker="o", markersize=4, label="validation")
    levels = (("as it was", outcome.as_it_was, green, "--"), ("right after the swap", outcome.after_swap, orange, ":"))
    for name, held, colour, dashes in levels:
        if held.validation is not None and (name == "as it was" or outcome.recovered is not None):
            axes.axhline(held.validation, color=colour, linestyle=dashes, linewidth=1.4, label=f"{name}, validation")
    finish(axes, "steps", "nats a token")
    axes.set_title(f"{wanted.model}: {outcome.encoding}, seed {outcome.seed}, {outcome.tokens:,} tokens", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, handlelength=3.5)
    figure.savefig(path, dpi=150)


def write_report(wanted: Recalibration, outcome: Outcome, out: Path, command: str) -> None:
    """summary.md, curves.png and report.html in the run's folder."""
    folder = RunFolder(out)
    draw_curves(wanted, outcome, folder.curve(), out / _PICTURE)
    picture = (out / _PICTURE).read_bytes()
    raw = {name: (out / name).read_bytes() for name in _RAW}
    write_pages(page(wanted, outcome, folder.about() or {}, command, picture, raw), out)


def _multiples(outcome: Outcome) -> tuple[int, ...]:
    measured: tuple[HeldOut, ...] = (outcome.as_it_was, outcome.after_swap, outcome.after)
    return tuple(sorted({k for held in measured for k in held.windows}))


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"


def _estimate(found: Estimate | None, text: Callable[[float], str] = rounded) -> str:
    """A mean with its interval; a single window has none."""
    if found is None:
        return "–"
    interval = f" ({text(found.low)} to {text(found.high)})" if found.is_clustered else ""
    return f"{text(found.mean)}{interval}"
