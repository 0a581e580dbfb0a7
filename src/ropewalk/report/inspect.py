"""What one look at a model's heads found, in words, tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.analysis.head_scores import scores
from ropewalk.analysis.head_statistics import rank_correlation
from ropewalk.analysis.inspect import FORMAT, FORMAT_VERSION, SIDES, Inspection
from ropewalk.io import one_line_errors, write_atomically
from ropewalk.report.head_figures import draw_heads
from ropewalk.report.kit.format import signed
from ropewalk.report.kit.page import (
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

# A head is called a sink from this mean share of attention on, the threshold of Gu et al., arXiv 2410.10781.
SINK = 0.3
# Ranks that go together less than this are called unrelated.
RELATED = 0.3
# How many leading eigenvalues the truncated scores look at, as in the papers; at 1 both are 1 - spectral norm.
RANKS = (4, 8, 16, 32)
TOP = 10
_LABELS = {
    "band_entropy": "band entropy",
    "matrix_entropy": "matrix entropy",
    "spectral_norm": "spectral norm",
    "truncated_effective_rank": "effective rank",
    "truncated_entropy": "truncated entropy",
}
TOP_HEADER = (
    "layer.head", "largest sink", "token", "first token", "first few",
    "spectral norm q", "spectral norm k", "matrix entropy q", "matrix entropy k",
)  # fmt: skip
_STAGES = {"post_ntk": "", "pre_ntk": " before rotation"}


def named_scores(found: Inspection) -> list[tuple[str, str, int | None]]:
    """(label, name, r) of every score that the inspection can give; a number in a label is r."""
    size = min(found[f"shares.post_ntk.{side}"].shape[-1] for side in SIDES)
    named: list[tuple[str, str, int | None]] = []
    for name, score in scores().items():
        if score.from_shares is None and not found.has_bands:
            continue
        if score.needs_r:
            named += [(f"{_LABELS[name]} ({r})", name, r) for r in RANKS if r <= size]
        else:
            named.append((_LABELS[name], name, None))
    return named


def verdict(found: Inspection) -> str:
    """How many heads are sinks, on which token; whether the scores tell; and what a plan does to the needle."""
    largest, at = found["sinks.largest"], found["sinks.largest_at"]
    is_sink = largest >= SINK
    number, total = int(is_sink.sum()), largest.numel()
    row, head = divmod(int(largest.argmax()), largest.shape[1])
    place = int(at[row, head])
    strongest = f"layer {found.layers[row]} head {head}, gives {_percent(largest.max())} to {token_at(found, place)}"
    counted = f"mean over {found.about['queries']:,} queries past place {found.about['first_query']}"
    if number:
        of_first = int((is_sink & (at == 0)).sum())
        said = (
            f"{number} of {total} heads are attention sinks: they give {SINK:.0%} or more of their attention to one "
            f"token that isn't recent ({counted}), {of_first} of them to the first; the strongest, {strongest}."
        )
    else:
        said = (
            f"None of {total} heads is an attention sink, giving {SINK:.0%} of its attention to one token that isn't "
            f"recent ({counted}); the nearest, {strongest}."
        )
    return " ".join([said, _agreement(found), *_needle(found)])


def top_heads(found: Inspection, number: int = TOP) -> list[tuple[int, int]]:
    """(row, head) of the largest sinks, largest first."""
    heads = found["sinks.largest"].shape[1]
    order = found["sinks.largest"].flatten().sort(descending=True, stable=True).indices[:number].tolist()
    return [divmod(i, heads) for i in order]


def top_rows(found: Inspection, number: int = TOP) -> list[tuple[str, ...]]:
    """Cells under `TOP_HEADER` for the heads with the largest sinks."""
    spectral, entropy = (
        [found.score(name, indicator=side) for side in SIDES] for name in ("spectral_norm", "matrix_entropy")
    )
    return [
        (
            f"{found.layers[row]}.{head}",
            _percent(found["sinks.largest"][row, head]),
            token_at(found, int(found["sinks.largest_at"][row, head])),
            _percent(found["sinks.first"][row, head]),
            _percent(found["sinks.few"][row, head]),
            *(f"{float(values[row, head]):.3f}" for values in (*spectral, *entropy)),
        )
        for row, head in top_heads(found, number)
    ]


def agreement_header(found: Inspection) -> tuple[str, ...]:
    """The score, and a column a side for each stage that was measured."""
    return ("score", *(f"{plural}{_STAGES[stage]}" for stage in _measured(found) for plural in ("queries", "keys")))


def agreement_rows(found: Inspection) -> list[tuple[str, ...]]:
    """Cells under `agreement_header`: each score's rank correlation with the largest sink mass, over all heads."""
    rows = []
    for label, name, r in named_scores(found):
        cells = []
        for stage in _measured(found):
            for side in SIDES:
                known = (r or 0) <= found[f"shares.{stage}.{side}"].shape[-1]
                cells.append(_correlation(found, name, r, side, stage) if known else "–")
        rows.append((label, *cells))
    return rows


def _measured(found: Inspection) -> list[str]:
    return [stage for stage in _STAGES if stage in found.stages]


def token_at(found: Inspection, place: int) -> str:
    """A token by its place and, where the record has it, its text: `token 0 "<|im_start|>"`."""
    text = found.about.get("token_texts", {}).get(str(place))
    return f"token {place:,}" if text is None else f"token {place:,} {json.dumps(text, ensure_ascii=False)}"


def to_json(found: Inspection) -> str:
    """How it was measured and a record for each head, as a JSON file's text."""
    about = {"format": FORMAT, "format_version": FORMAT_VERSION} | dict(found.about)
    return json.dumps(about | {"heads": list(_heads(found))}, indent=1, allow_nan=False) + "\n"


def facts(found: Inspection) -> dict[str, str]:
    """What else than the command decides the figures."""
    about = found.about
    model = about["model"]
    said = {
        "model": f"{model['name'] or 'no name'}, fingerprint {str(model['fingerprint'])[:16]}",
        "tokens": f"{len(found['tokens']):,}, SHA-256 {about['text_fingerprint'][:16]}",
        "sinks": f"mean over {about['queries']:,} queries, evenly spread from place {about['first_query']} on; of each "
        f"the last {about['recent']} tokens don't count",
    }
    if "text" in about:
        said["text"] = f"{about['text']['name']}, SHA-256 {about['text']['fingerprint'][:16]}"
    if about.get("needle") is not None:
        said["needle"] = f"tokens {about['needle'][0]:,} to {about['needle'][1] - 1:,}"
    if "versions" in about:
        said["versions"] = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    if "machine" in about:
        said["machine"] = about["machine"]
    return said


def _heads(found: Inspection) -> Iterator[dict[str, Any]]:
    columns: dict[str, Tensor] = {
        name.replace("sinks.", ""): found[name]
        for name in ("sinks.first", "sinks.few", "sinks.largest", "sinks.largest_at")
    }
    for name in ("needle.before", "needle.after"):
        if name in found:
            columns[name.replace(".", "_")] = found[name]
    for _, name, r in named_scores(found):
        for side in SIDES:
            columns[f"{name}{'' if r is None else f'_{r}'}_{side}"] = found.score(name, r, side)
    rows, heads = found["sinks.first"].shape
    for row in range(rows):
        for head in range(heads):
            figures = {name: _plain(values[row, head]) for name, values in columns.items()}
            yield {"layer": found.layers[row], "head": head} | figures


def _plain(value: Tensor) -> int | float:
    number = value.item()
    return int(number) if not torch.is_floating_point(value) else float(f"{number:.6g}")


def _correlation(found: Inspection, name: str, r: int | None, side: str, stage: str) -> str:
    value = rank_correlation(found.score(name, r, side, stage), found["sinks.largest"])
    return "–" if math.isnan(value) else signed(value, 2)


def _agreement(found: Inspection) -> str:
    """Whether DoPE's own score goes with the sinks' sizes, and which score does most."""
    largest = found["sinks.largest"]
    related = {
        f"{label} of {plural}": rank_correlation(found.score(name, r, side), largest)
        for label, name, r in named_scores(found)
        for side, plural in zip(SIDES, ("queries", "keys"), strict=True)
    }
    own = related["spectral norm of keys"]
    if math.isnan(own):
        return "The spectral norm of keys, DoPE's score, is the same for all heads."
    tells = "goes with the size of a head's sink" if abs(own) >= RELATED else "hardly tells sinks from other heads"
    most = max((name for name, value in related.items() if not math.isnan(value)), key=lambda name: abs(related[name]))
    return (
        f"The spectral norm of keys, DoPE's score, {tells} (rank correlation {signed(own, 2)} over {largest.numel()} "
        f"heads); of all scores the {most} goes with it most ({signed(related[most], 2)})."
    )


def _needle(found: Inspection) -> list[str]:
    """What a plan changes for the needle, where one was tried."""
    if "needle.after" not in found:
        return []
    before, after = found["needle.before"], found["needle.after"]
    row, head = divmod(int((after - before).abs().argmax()), before.shape[1])
    return [
        f"With the plan, heads give the needle {_percent(after.mean())} of their attention instead of "
        f"{_percent(before.mean())} on average; layer {found.layers[row]} head {head} changes most, from "
        f"{_percent(before[row, head])} to {_percent(after[row, head])}."
    ]


def _percent(share: Tensor) -> str:
    return f"{float(share):.1%}"


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
