"""The page that a look at a model's heads ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ropewalk.analysis.inspection import SIDES, Inspection
from ropewalk.files import one_line_errors, write_atomically
from ropewalk.report.head_figures import draw_heads
from ropewalk.report.inspect import (
    TOP_HEADER,
    agreement_header,
    agreement_rows,
    facts,
    named_scores,
    to_json,
    top_heads,
    top_rows,
    verdict,
)
from ropewalk.report.page import (
    Download,
    HeadChart,
    HeadMap,
    Page,
    Paragraph,
    Part,
    Picture,
    Reproduce,
    Section,
    Table,
)

RECORD, JSON, PAGE = "inspect.safetensors", "inspect.json", "report.html"
# Tokens of the cosine pictures on the page; the record has twice as many.
_TOKENS = 128
# Picture -> title, what it shows, and what to know about it. Sinks and scores are on the map of heads.
_SECTIONS = {
    "usage": ("Frequency usage", "Layer by frequency: how much queries and keys use each frequency.", ""),
    "low_rank": ("Directions", "Tokens against eigenvectors for the most and the least spiky head.", ""),
    "cone": (
        "The cone bound",
        "The cone bound against the measured eigenvalue, and the share of heads in which it says anything.",
        "Where all vectors of a band lie in a cone of half-angle γ below 90°, the largest eigenvalue of its Gram "
        "matrix is at least N βmin² |k|² cos² γ (DoPE, arXiv 2511.09146). Elsewhere the bound says nothing.",
    ),
    "needle": ("The needle", "Layer by head: attention from the answer's place to the needle.", ""),
    "delta": (
        "PoPE's delta",
        "PoPE's learned phase by key head and channel.",
        "Radians, wrapped into -π to π: whole turns, which change nothing, are left out. On a scale that reaches π the "
        "darkest and the brightest colour are the same phase, half a turn.",
    ),
}


def write_inspection(found: Inspection, command: str, folder: Path) -> None:
    """Write record, JSON, pictures and page into a folder that is there.

    Raises:
        ArgumentError: a file can't be written.
    """
    found.save(folder / RECORD)
    write_atomically(folder / JSON, to_json(found))
    with one_line_errors(folder):
        pictures = {name: path.read_bytes() for name, path in draw_heads(found, folder).items()}
    inspect_page(found, command, pictures).write(folder / PAGE)


def inspect_page(found: Inspection, command: str, pictures: Mapping[str, bytes]) -> Page:
    """The page, with pictures in SVG by name."""
    name = found.about["model"]["name"] or "the model"
    parts: list[Part] = [
        *head_parts(found),
        *_pictured(pictures),
        Section("How this was made"),
        Reproduce(command, facts(found)),
        Download(JSON, to_json(found).encode(), "application/json"),
    ]
    return Page(f"The heads of {name} at {len(found['tokens']):,} tokens", verdict(found), parts)


def head_parts(found: Inspection) -> list[Part]:
    """The sections that a page about more than heads shows too: sinks, the map of all heads, what goes with sinks."""
    return [
        Section("The largest sinks"),
        Table(TOP_HEADER, top_rows(found), "Mean attention of later queries; scores of the vectors that are compared."),
        Section("Heads"),
        _head_map(found),
        Section("Scores and sinks"),
        Paragraph(
            "How far the rank of a head by a score agrees with its rank by the largest sink mass: +1 is the same "
            "order, -1 the opposite, 0 none. A key head's score counts for each query head that reads it."
        ),
        Table(
            agreement_header(found),
            agreement_rows(found),
            "Spearman's rank correlation with the largest sink mass; in brackets how many eigenvalues a score looks at",
        ),
    ]


def _pictured(pictures: Mapping[str, bytes]) -> list[Part]:
    """A section for each picture that there is."""
    parts: list[Part] = []
    for name, (title, alt, caption) in _SECTIONS.items():
        if name in pictures:
            parts += [Section(title), Picture(pictures[name], "svg", alt, caption)]
    return parts


def _head_map(found: Inspection) -> HeadMap:
    coloured: dict[str, Tensor] = {
        "largest sink mass": found["sinks.largest"],
        "first token's mass": found["sinks.first"],
        f"first {found.about['first_tokens']} tokens' mass": found["sinks.few"],
    }
    if "needle.before" in found:
        coloured["attention to the needle"] = found["needle.before"]
    if "needle.after" in found:
        coloured["attention to the needle with the plan"] = found["needle.after"]
    for label, name, r in named_scores(found):
        for side, plural in zip(SIDES, ("queries", "keys"), strict=True):
            coloured[f"{label} of {plural}"] = found.score(name, r, side)
    marked = [(found.layers[row], head) for row, head in top_heads(found)]
    return HeadMap(
        "Layer by head",
        found.layers,
        found["sinks.first"].shape[1],
        {name: values.tolist() for name, values in coloured.items()},
        _charts(found),
        marked,
        "Open a head to see where its attention goes and what its vectors are like. Dots mark the ten largest sinks.",
    )


def _charts(found: Inspection) -> list[HeadChart]:
    heads = found["sinks.first"].shape[1]

    def both(name: str) -> Tensor:
        """(layers, heads, 2, n): queries, and the keys that each query head reads."""
        pair = [found[f"{name}.{side}"].float() for side in SIDES]
        return torch.stack([x.repeat_interleave(heads // x.shape[1], dim=1) for x in pair], dim=2)

    places = found["low_rank.places"]
    kept = torch.linspace(0, len(places) - 1, min(_TOKENS, len(places))).round().long()
    bins = found["sinks.by_place"].shape[-1]
    starts = [len(found["tokens"]) * i // bins for i in range(bins)]
    size = found["shares.post_ntk.key"].shape[-1]
    usage = []
    if found.has_bands:
        usage.append(
            HeadChart(
                "Frequency usage",
                "line",
                both("usage"),
                series=("queries", "keys"),
                x_title="frequency number (0 = fastest)",
                y_title="mean 2-norm",
            )
        )
    charts = [
        HeadChart(
            "Where its attention goes", "line", found["sinks.by_place"], starts, x_title="token",
            y_title="mean attention mass", caption="Of later queries, without each one's last 16 tokens.",
        ),
        *usage,
        HeadChart(
            "Shares of the eigenvalues", "line", both("shares.post_ntk"), range(1, size + 1), ("queries", "keys"),
            x_title="eigenvalue, largest first", y_title="share of the trace",
        ),
    ]  # fmt: skip
    for index, plural in enumerate(("queries", "keys")):
        values = both("low_rank")[:, :, index, kept].transpose(-1, -2)
        names = [str(i + 1) for i in range(values.shape[-2])]
        title = f"Cosine of its {plural} with the leading eigenvectors"
        charts.append(HeadChart(title, "heat", values, places[kept].tolist(), names, "token", "eigenvector"))
    return charts
