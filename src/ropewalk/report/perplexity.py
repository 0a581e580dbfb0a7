"""What became of models past their training length, in tables and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.data.windows import WHOLE
from ropewalk.evaluation.comparison import Against, Lead
from ropewalk.evaluation.likelihood import FULL
from ropewalk.evaluation.perplexity import Curve, Point, Study
from ropewalk.evaluation.provenance import made_with, provenance
from ropewalk.evaluation.statistics import Estimate
from ropewalk.io import write_atomically
from ropewalk.report.kit.colours import line_style
from ropewalk.report.kit.format import signed
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import Download, Page, Paragraph, Part, Picture, Reproduce, Section, Table
from ropewalk.report.needle_figures import finish

_PICTURE = "perplexity.png"


def title(study: Study) -> str:
    """One line on what the first table's figures are."""
    if study.reading.way == FULL:
        return f"perplexity of the last {study.reading.training_length:,} tokens of a text of so many"
    judged = study.reading.judged(study.reading.training_length)
    return f"perplexity of the same {judged:,} tokens of a window behind so much context"


def header(study: Study) -> tuple[str, ...]:
    """The columns of every table: lengths that double, and the furthest."""
    lengths = [study.reading.lengths[place] for place in _shown(study)]
    return ("model", *(f"{length:,} tokens" for length in lengths))


def perplexity_rows(study: Study) -> list[tuple[str, ...]]:
    """A row an arm: perplexity at each length."""
    return _rows(study, lambda point: _perplexity(point.nll))


def what_was_read(study: Study) -> str:
    """Which text, which part of it, whether a model was trained on it, and what the intervals are over."""
    books, trained = study.books, "; ".join(study.trained)
    if not trained:
        held = "no model here is known to have been trained on this text"
    elif books.part in (WHOLE, "train"):
        held = f"this isn't held out for the models that were trained on its train part ({trained})"
    else:
        held = f"models trained on its train part: {trained}"
    unknown = f" {study.unknown:.2%} of the tokens are unknown to the tokenizer." if study.unknown else ""
    windows = f"{_counted(books.windows, 'window')} of {books.length:,} tokens from {books.describe()}"
    over = "Brackets are 95 % intervals over windows." if books.windows > 1 else "One window gives no interval."
    return f"Read: {windows}; {held}.{unknown} {over}"


def verdict(study: Study) -> str:
    """Who predicts best at the furthest length, what has become of the first there, and what chance may explain."""
    reading, curves, found = study.reading, study.curves, study.lead
    start = f"{reading.training_length:,}"
    said = f"At {reading.lengths[-1]:,} tokens, {reading.furthest} times {start}, "
    if found is None:
        return f"{said}{_at_the_end(curves[0])} its own at {start}."
    best = next(curve for curve in curves if curve.arm.name == found.lowest)
    said += f"{_at_the_end(best)} its own at {start}, the lowest of {len(curves)}"
    said += "." if best is curves[0] else f"; {_at_the_end(curves[0])} its own."
    apart = f"{found.lowest} is {' and '.join(_apart(study, found))}"
    return f"{said} {apart}. p is corrected for the number of comparisons (Holm)."


def facts(study: Study) -> dict[str, str]:
    """What else than the command decides the figures."""
    stride = "" if study.reading.stride is None else f", stride {study.reading.stride:,}"
    models = [curve.arm.subject.source for curve in study.curves if curve.arm.encoding is None]
    return {
        "way": f"{study.reading.way}{stride}; seed {study.books.seed}",
        "text": f"{study.books.text.name}, SHA-256 {study.books.text.fingerprint[:16]}",
        "models": ", ".join(models),
        **made_with(),
    }


def page(study: Study, command: str, picture: bytes, raw: str) -> Page:
    """The page; `raw` is the summary's JSON, to be downloaded."""
    reading, first = study.reading, study.curves[0].arm.name
    start = f"{reading.training_length:,}"
    tables: list[tuple[str, Callable[[Point], str]]] = [(title(study), lambda point: _perplexity(point.nll))]
    if reading.way == FULL:
        tables.append(("perplexity of a whole text of so many tokens", lambda point: _perplexity(point.whole)))
    tables.append((f"times its own figure at {start} tokens", lambda point: _perplexity(point.growth)))
    if len(study.curves) > 1:
        tables.append((f"nats a token above {first}, on the same windows", lambda point: _signed(point.against)))
    parts: list[Part] = [Paragraph(what_was_read(study))]
    for name, cell in tables:
        parts += [Section(name[0].upper() + name[1:]), Table(header(study), _rows(study, cell))]
    if len(study.curves) > 1:
        compared = [(arm, _signed(found.difference), f"{found.adjusted:.2g}") for arm, found in study.against.items()]
        parts.append(Table(("model", f"above {first} at {reading.lengths[-1]:,} tokens", "p (Holm)"), compared))
    alt = "Nats a token against position, a line a model"
    parts += [
        Section("By position"),
        Picture(picture, "png", alt, name=_PICTURE),
        Section("How this was made"),
        Reproduce(command, facts(study)),
        Download("summary.json", raw.encode(), "application/json"),
    ]
    return Page(f"Perplexity up to {reading.furthest} times {start} tokens", verdict(study), parts)


def draw(study: Study, path: Path) -> None:
    """Nats a token against length, on a log axis: a line an arm, its interval as a band. PNG or SVG by suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes: Any = figure.subplots()
    for number, curve in enumerate(study.curves):
        lengths = [point.length for point in curve.points]
        style = line_style(number)
        axes.plot(
            lengths,
            [point.nll.mean for point in curve.points],
            label=curve.arm.name,
            **style,
        )
        if study.books.windows > 1:
            low, high = [p.nll.low for p in curve.points], [p.nll.high for p in curve.points]
            axes.fill_between(lengths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = [study.reading.lengths[place] for place in _shown(study)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(study.reading.training_length, color="black", linewidth=0.8, linestyle=(0, (2, 3)))
    axes.annotate(
        "training length",
        (study.reading.training_length, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=8,
    )
    across = "position, tokens" if study.reading.way == FULL else "context, tokens"
    finish(axes, across, "nats a token")
    intervals = ", 95 % intervals" if study.books.windows > 1 else ""
    axes.set_title(f"{study.books.describe()}, {_counted(study.books.windows, 'window')}{intervals}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def write_report(study: Study, folder: Path, command: str) -> None:
    """summary.md, summary.json, perplexity.png and report.html in a folder."""
    raw = json.dumps(study.to_dict() | {"command": command} | provenance(), indent=2) + "\n"
    write_atomically(folder / "summary.json", raw)
    draw(study, folder / _PICTURE)
    write_pages(page(study, command, (folder / _PICTURE).read_bytes(), raw), folder)


def _at_the_end(curve: Curve) -> str:
    """'pope has a perplexity of 5.61, 1.05 times'."""
    last = curve.points[-1]
    return f"{curve.arm.name} has a perplexity of {_exponential(last.nll.mean)}, {_exponential(last.growth.mean)} times"


def _apart(study: Study, found: Lead) -> list[str]:
    """Whether the lowest arm is below the first one and below the next, each with its p."""
    first = study.curves[0].arm.name
    said = [] if found.lowest == first else [_below("the first", first, study.against[found.lowest])]
    return said if found.following == first else [*said, _below("the next", found.following, found.by)]


def _below(which: str, arm: str, against: Against) -> str:
    """'lower than the next, pope, beyond chance (p = 0.01)'."""
    return f"{'' if against.is_better else 'not '}lower than {which}, {arm}, beyond chance (p = {against.adjusted:.2g})"


def _shown(study: Study) -> list[int]:
    """Which lengths have a column, by their place: 1, 2, 4, ... training lengths, and the furthest."""
    furthest = study.reading.furthest
    doubled = {2**power - 1 for power in range(furthest.bit_length())}
    return sorted(doubled | {furthest - 1})


def _rows(study: Study, cell: Callable[[Point], str]) -> list[tuple[str, ...]]:
    return [(curve.arm.name, *(cell(curve.points[place]) for place in _shown(study))) for curve in study.curves]


def _perplexity(nats: Estimate | None) -> str:
    """'5.61 [5.20, 6.05]' out of nats: their exponential, which for differences is a ratio."""
    assert nats is not None
    mean = _exponential(nats.mean)
    return mean if math.isinf(nats.high) else f"{mean} [{_exponential(nats.low)}, {_exponential(nats.high)}]"


def _signed(nats: Estimate | None) -> str:
    if nats is None:
        return ""
    mean = signed(nats.mean)
    return mean if math.isinf(nats.high) else f"{mean} [{signed(nats.low)}, {signed(nats.high)}]"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _exponential(nats: float) -> str:
    value = math.exp(min(nats, 700.0))  # the interval of two windows can reach past what a float holds
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
