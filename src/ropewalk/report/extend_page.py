"""The page that the main job ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ropewalk.analysis.head_scores import band_channels, eigenvalue_shares
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.encodings.dope import DoPE
from ropewalk.evaluation.calibration import FILE
from ropewalk.evaluation.candidates import is_remap
from ropewalk.evaluation.extend import Outcome
from ropewalk.io import one_line_errors
from ropewalk.report.kit.heat_maps import SHARES
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import (
    Download,
    Folded,
    HeadChart,
    HeadMap,
    HeatMaps,
    Page,
    Paragraph,
    Part,
    Reproduce,
    Section,
    Table,
)
from ropewalk.report.needle_figures import DEPTH, by_depth
from ropewalk.report.summary import (
    BREAKS_HEADER,
    HEADER,
    SEARCH_HEADER,
    SHORT_COST,
    facts,
    few_prompts,
    final_rows,
    search_rows,
    search_titles,
    setup,
    short_header,
    short_rows,
    title,
    verdict,
    where_it_breaks,
)

# (score, r, indicator): what the papers choose heads by.
_SCORES = (
    ("truncated_entropy", 32, "key"),
    ("truncated_entropy", 1, "key"),
    ("truncated_effective_rank", 16, "query"),
    ("truncated_effective_rank", 8, "key"),
    ("band_entropy", None, "key"),
    ("band_entropy", None, "query"),
    ("matrix_entropy", None, "key"),
    ("matrix_entropy", None, "query"),
    ("spectral_norm", None, "key"),
    ("spectral_norm", None, "query"),
)


def write_report(outcome: Outcome, command: str, model: dict[str, Any], folder: Path) -> None:
    """Write summary.md and report.html into a run's folder, from its outcome and the records and head statistics there.

    Args:
        outcome: what `extend` found.
        command: the command line that ran it.
        model: the model as `describe` tells it.
        folder: with results.jsonl and the statistics that `extend` has left there.

    Raises:
        ArgumentError, DamagedFileError: a file can't be read or written.
    """
    path = folder / "results.jsonl"
    with one_line_errors(path, "read"):
        records = path.read_bytes()
    statistics = Statistics.load(folder / FILE) if outcome.dope else None
    write_pages(extend_page(outcome, command, model, statistics, records), folder)


def extend_page(
    outcome: Outcome, command: str, model: dict[str, Any], statistics: Statistics | None, records: bytes
) -> Page:
    """The page of an outcome.

    Args:
        statistics: of the heads under the best rule or remap; None where no DoPE plan was tried.
        records: the file of all answers.
    """
    rules_title, dope_title = search_titles(outcome)
    count, warning = outcome.needle_count, few_prompts(outcome)
    parts: list[Part] = [
        Section("Judged on prompts that no choice had seen"),
        *([Paragraph(count.text())] if count else []),
        Table(HEADER, [row.cells() for row in final_rows(outcome)]),
        Paragraph(setup(outcome)),
        *([Paragraph(warning)] if warning else []),
        *_by_depth(outcome),
        _answers(outcome),
        Section("Where it breaks"),
        Table(BREAKS_HEADER, where_it_breaks(outcome)),
        Section("What it costs on short inputs"),
        Paragraph(SHORT_COST),
        Table(short_header(outcome), short_rows(outcome)),
        Section("The search"),
        Table(("rule or remap", *SEARCH_HEADER), search_rows(outcome.rules), rules_title),
        *(_dope(outcome, statistics, dope_title) if statistics else []),
        Section("How this was made"),
        Reproduce(command, facts(outcome, model)),
        Download("results.jsonl", records, "application/jsonl"),
    ]
    return Page(title(outcome, model), verdict(outcome), parts)


def _dope(outcome: Outcome, statistics: Statistics, table_title: str) -> list[Part]:
    """The search among DoPE plans, and what their heads are chosen by."""
    assert outcome.best is not None
    measured = f"Measured on {statistics.num_tokens:,} tokens of {outcome.job.text.name} under {outcome.best.name}"
    far = (
        ", those past its window at the positions at which they are compared" if is_remap(outcome.best.encoding) else ""
    )
    return [
        Table(("plan", *SEARCH_HEADER), search_rows(outcome.dope), table_title),
        Section("The heads"),
        Paragraph(f"{measured}, after rotation{far}."),
        _heads(outcome, statistics),
    ]


def _by_depth(outcome: Outcome) -> list[Part]:
    """Two maps, answers right and NLL: an arm a row, and the plain model at its training length above them."""
    job = outcome.job
    at_original = {f"plain at {job.original_length:,} tokens": outcome.at_original}
    found = {name: by_depth(answers) for name, answers in (at_original | outcome.final).items()}
    depths = sorted({depth for means in found.values() for depth in means})
    columns = [f"{depth:.2f}" for depth in depths]
    maps: list[Part] = []
    for which, name, unit in ((0, "Answers right by depth", "share"), (1, "Answer NLL by depth", "nats per token")):
        panel = [[means[depth][which] if depth in means else None for depth in depths] for means in found.values()]
        maps.append(
            HeatMaps(
                name,
                "encoding",
                list(found),
                DEPTH,
                columns,
                {name: panel},
                unit,
                low_is_good=which == 1,
                caption="Bright is good." if which == 1 else "",
                limits=SHARES if which == 0 else (),
            )
        )
    return maps


def _answers(outcome: Outcome) -> Part:
    """Every question of the judgement with each arm's answer."""
    said = {name: {(a.prompt, a.key): a for a in answers} for name, answers in outcome.final.items()}
    rows = []
    assert outcome.best is not None
    for a in outcome.final[outcome.best.name]:
        row = [a.prompt, f"{a.depth:.2f}", a.key, a.expected]
        for answers in said.values():
            answer = answers.get((a.prompt, a.key))  # plain may have been asked about the first prompt alone
            row.append("" if answer is None else f"{'✓' if answer.is_exact else '✗'} {answer.generated}")
        rows.append(row)
    table = Table(("prompt", "depth", "asked for", "expected", *said), rows, "✓ right, ✗ wrong")
    return Folded(f"All {len(rows)} questions and answers of the judgement", [table])


def _heads(outcome: Outcome, statistics: Statistics) -> Part:
    plan = outcome.best_dope
    assert plan is not None and isinstance(plan.encoding, DoPE)
    scores = {}
    for name, r, indicator in _SCORES:
        rank = None if r is None else min(r, statistics.head_dim)
        label = f"{name}{'' if rank is None else f'-{rank}'} {indicator}"
        scores[label] = statistics.score(name, rank, indicator).tolist()
    # A plan's name says which score chose its heads: that one is shown first.
    first = sorted(scores, key=lambda label: f"({label})" not in plan.name)
    return HeadMap(
        "What the heads are chosen by",
        statistics.layers,
        statistics.num_heads,
        {label: scores[label] for label in first},
        [_spectrum(statistics), _usage(statistics)],
        marked=list(plan.encoding.heads),
        caption=f"Dots: the heads of the best DoPE plan, {plan.name}.",
    )


def _spectrum(statistics: Statistics) -> HeadChart:
    """How many directions a head's vectors take."""
    query, key = (eigenvalue_shares(gram) for gram in statistics.grams["post_ntk"])
    key = key.repeat_interleave(statistics.num_heads // statistics.num_kv_heads, dim=1)
    return HeadChart(
        "Eigenvalues of the Gram matrix",
        "line",
        torch.stack([query, key], dim=2),
        x=range(1, statistics.head_dim + 1),
        series=("queries", "keys"),
        x_title="eigenvalue, largest first",
        y_title="share of the trace",
    )


def _usage(statistics: Statistics) -> HeadChart:
    """How much of a head's vectors lies in each rotary pair."""
    first, second = band_channels(statistics.head_dim, statistics.layout, statistics.rotary_dim)
    sizes = []
    for gram in statistics.grams["post_ntk"]:
        energy = gram.double().diagonal(dim1=-2, dim2=-1) / statistics.num_tokens
        sizes.append((energy[..., first] + energy[..., second]).clamp(min=0).sqrt())
    query, key = sizes
    key = key.repeat_interleave(statistics.num_heads // statistics.num_kv_heads, dim=1)
    return HeadChart(
        "Use of the frequencies",
        "bars",
        torch.stack([query, key], dim=2),
        series=("queries", "keys"),
        x_title="rotary pair, fastest first",
        y_title="root mean square of its norm",
    )
