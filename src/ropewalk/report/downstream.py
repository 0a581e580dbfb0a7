"""Minimal pairs and last words, in tables and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.provenance import made_with, provenance
from ropewalk.evaluation.shares import WORDS, Group, Share
from ropewalk.evaluation.statistics import Estimate
from ropewalk.io import write_atomically
from ropewalk.report.kit.colours import line_style
from ropewalk.report.kit.format import signed
from ropewalk.report.kit.markdown import write_pages
from ropewalk.report.kit.page import Download, Page, Paragraph, Part, Picture, Reproduce, Section, Table
from ropewalk.report.needle_figures import finish

_PICTURE = "downstream.png"
HEADER = ("model", "questions", "right", "points above the first", "p (Holm)")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What was measured and what came out.

    Args:
        sources: where the questions are from, by kind.
        arms: the models and plans, in order.
        groups: their shares.
        unknown: by model, the share of tokens that its tokenizer doesn't know, 0 to 1.
    """

    sources: dict[str, str]
    arms: tuple[Arm, ...]
    groups: tuple[Group, ...]
    unknown: dict[str, float]


def rows(group: Group) -> list[tuple[str, ...]]:
    """A row a model: share of right answers with its interval, and how it compares with the first model's."""
    found: list[tuple[str, ...]] = []
    for name, share in group.shares.items():
        against = share.against
        compared = ("", "")
        if against is not None:
            d = against.difference
            interval = "" if math.isinf(d.high) else f" [{signed(100 * d.low, 1)}, {signed(100 * d.high, 1)}]"
            compared = (f"{signed(100 * d.mean, 1)}{interval}", f"{against.p:.2g}")
        found.append((name, f"{share.right.n:,}", right(share), *compared))
    return found


def title(group: Group) -> str:
    """What is right in this group."""
    if group.name == WORDS:
        return "last words: every token of the word is the likeliest"
    return f"{group.name}: the good sentence is the likelier one"


def right(share: Share) -> str:
    """'78.3 % [75.0 %, 81.2 %]'."""
    r = share.right
    return f"{r.mean:.1%} [{r.low:.1%}, {r.high:.1%}]"


def verdict(judgement: Judgement) -> str:
    """A sentence for each kind of question: which model is right most often, and who differs from the first."""
    said = []
    for group in judgement.groups:
        if group.kind != "all":
            continue
        best = max(group.shares, key=lambda name: group.shares[name].right.mean)
        apart = [n for n, share in group.shares.items() if share.against is not None and share.against.p < 0.05]
        compared = "" if len(group.shares) == 1 else "; none differs from the first beyond chance"
        compared = f"; beyond chance from the first differ: {', '.join(apart)}" if apart else compared
        most = " most often" if len(group.shares) > 1 else ""
        said.append(
            f"{title(group)[0].upper()}{title(group)[1:]}{most} for {best}, {right(group.shares[best])}{compared}."
        )
    return " ".join(said)


def facts(judgement: Judgement) -> dict[str, str]:
    """What else than the command decides the figures."""
    unknown = {f"tokens unknown to {name}": f"{share:.2%}" for name, share in judgement.unknown.items() if share}
    return judgement.sources | unknown | made_with()


def page(judgement: Judgement, command: str, picture: bytes, raw: str) -> Page:
    """The page; `raw` is the summary's JSON, to be downloaded."""
    parts: list[Part] = [
        Paragraph("Brackets are 95 % intervals: Wilson's for shares; questions are independent units.")
    ]
    for group in judgement.groups:
        if group.kind == "all":
            parts += [Section(title(group)[0].upper() + title(group)[1:]), Table(HEADER, rows(group))]
            if group.name == WORDS:
                nats = [(name, _nats(share.nll)) for name, share in group.shares.items()]
                parts.append(Table(("model", "nats a token of the right word"), nats))
    for kind in ("phenomenon", "test set"):
        chosen = [group for group in judgement.groups if group.kind == kind]
        if chosen:
            header = (kind, "pairs", *(arm.name for arm in judgement.arms))
            cells = [(g.name, str(_size(g)), *(right(share) for share in g.shares.values())) for g in chosen]
            parts += [Section(f"By {kind}"), Table(header, cells)]
    parts += [
        Section("In a picture"),
        Picture(picture, "png", "Shares of right answers, a mark a model", name=_PICTURE),
        Section("How this was made"),
        Reproduce(command, facts(judgement)),
        Download("summary.json", raw.encode(), "application/json"),
    ]
    heading = "Minimal pairs and last words" if len(judgement.sources) > 1 else _only(judgement)
    return Page(heading, verdict(judgement), parts)


def draw(judgement: Judgement, path: Path) -> None:
    """The share of right answers with its interval: a line a group, a mark a model. PNG or SVG by suffix."""
    from matplotlib.figure import Figure

    has_phenomena = any(group.kind == "phenomenon" for group in judgement.groups)
    finer = "phenomenon" if has_phenomena else "test set"
    chosen = [group for group in judgement.groups if group.kind in ("all", finer)]
    arms = len(judgement.arms)
    height = 1.6 + 0.3 * arms + len(chosen) * max(0.28, 0.14 * arms)
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes: Any = figure.subplots()
    for number, arm in enumerate(judgement.arms):
        shares = [group.shares[arm.name].right for group in chosen]
        places = [row + (number - (arms - 1) / 2) * 0.7 / arms for row in range(len(chosen))]
        axes.errorbar(
            [100 * share.mean for share in shares],
            places,
            xerr=[
                [100 * (share.mean - share.low) for share in shares],
                [100 * (share.high - share.mean) for share in shares],
            ],
            label=arm.name,
            **(line_style(number) | {"linestyle": "none"}),
        )
    finish(axes, "right answers, %", "")
    axes.set_yticks(range(len(chosen)), [group.name.replace("_", " ") for group in chosen], fontsize=8)
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    if any(group.name != WORDS for group in chosen):
        axes.axvline(50, color="black", linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_title("95 % intervals; dashed: what guessing between two sentences gives", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def write_report(judgement: Judgement, folder: Path, command: str) -> None:
    """summary.md, summary.json, downstream.png and report.html in a folder."""
    found = {
        "sources": judgement.sources,
        "arms": [arm.to_dict() for arm in judgement.arms],
        "groups": [group.to_dict() for group in judgement.groups],
        "unknown": judgement.unknown,
        "command": command,
    }
    raw = json.dumps(found | provenance(), indent=2) + "\n"
    write_atomically(folder / "summary.json", raw)
    draw(judgement, folder / _PICTURE)
    write_pages(page(judgement, command, (folder / _PICTURE).read_bytes(), raw), folder)


def _only(judgement: Judgement) -> str:
    return "Last words" if "words" in judgement.sources else "Minimal pairs"


def _nats(nll: Estimate) -> str:
    """'1.234 [1.100, 1.368]'; an interval of few passages can reach below 0, where no likelihood is."""
    return f"{nll.mean:.3f}" + ("" if math.isinf(nll.high) else f" [{max(0.0, nll.low):.3f}, {nll.high:.3f}]")


def _size(group: Group) -> int:
    return next(iter(group.shares.values())).right.n
