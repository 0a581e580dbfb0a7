"""What one look at a model's heads found, in words, tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ropewalk.analysis.inspection import FORMAT, FORMAT_VERSION, SIDES, Inspection
from ropewalk.analysis.scores import scores
from ropewalk.analysis.statistics import rank_correlation
from ropewalk.report.rounded import signed

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
