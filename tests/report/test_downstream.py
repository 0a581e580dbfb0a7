"""The tables and the picture of minimal pairs and last words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.report.test_perplexity import subject

from ropewalk.data.minimal_pairs import Pair
from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.downstream import Found
from ropewalk.evaluation.shares import Group, groups
from ropewalk.evaluation.statistics import Answer
from ropewalk.report.downstream import Judgement, page, rows, verdict, write_report
from ropewalk.report.kit.markdown import markdown

PAIRS = [Pair(s, "g", "b", p) for s, p in (("a_set", "agreement"), ("b_set", "order")) for _ in range(4)]


def judgement(kinds: str = "pairs words", unknown: float = 0.0) -> Judgement:
    """Two models; the first has 6 of 8 pairs right, the second 4, and each 1 of 2 last words."""

    def found(name: str, right: int) -> Found:
        pairs = [
            Answer(f"{s}/{n}", s, 0.0, "pair", "g", 1.0, n < right, "g") for s in ("a_set", "b_set") for n in range(4)
        ]
        words = [Answer(f"last words/{n}", "last words", 1.0, "word", "w", 0.5 + n, n < 1, "w") for n in range(2)]
        arm = Arm(name, subject(name))
        return Found(arm, tuple(pairs if "pairs" in kinds else ()), tuple(words if "words" in kinds else ()))

    both = [found("first", 3), found("second", 2)]
    made = groups(both, PAIRS if "pairs" in kinds else [])
    sources = {kind: f"{kind}.jsonl" for kind in kinds.split()}
    return Judgement(sources, tuple(f.arm for f in both), tuple(made), {"first": unknown, "second": 0.0})


def test_a_row_has_the_share_and_how_it_compares() -> None:
    first, second = rows(judgement().groups[0])
    assert first == ("first", "8", "75.0% [40.9%, 92.9%]", "", "")
    assert second[:3] == ("second", "8", "50.0% [21.5%, 78.5%]")
    assert second[3].startswith("-25.0 [-51.6, +11.6]") and second[4] == "0.5"


def test_the_page_tells_groups_sources_and_unknown_tokens() -> None:
    text = markdown(page(judgement(unknown=0.004), "ropewalk downstream x", b"", "{}"))
    for part in (
        "# Minimal pairs and last words",
        "## All pairs: the good sentence is the likelier one",
        "## Last words: every token of the word is the likeliest",
        "| first | 1.000 [0.000, 7.353] |",
        "| agreement | 4 | 75.0%",
        "## By test set",
        "| b_set | 4 |",
        "- pairs: pairs.jsonl",
        "- tokens unknown to first: 0.40%",
        "`ropewalk downstream x`",
    ):
        assert part in text
    assert "unknown to second" not in text
    assert markdown(page(judgement("words"), "c", b"", "{}")).startswith("# Last words\n")
    assert markdown(page(judgement("pairs"), "c", b"", "{}")).startswith("# Minimal pairs\n")


def test_the_verdict_names_the_best_and_who_differs() -> None:
    said = verdict(judgement())
    assert said.startswith(
        "All pairs: the good sentence is the likelier one most often for first, 75.0% [40.9%, 92.9%]; "
    )
    assert said.count("none differs from the first beyond chance.") == 2 and "for first, 50.0% [9.5%, 90.5%]" in said
    assert "most often" not in verdict(dataclasses.replace(judgement(), groups=alone(judgement().groups)))


def alone(found: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups with the first model's shares only."""
    return tuple(dataclasses.replace(group, shares=dict(list(group.shares.items())[:1])) for group in found)


@pytest.mark.parametrize("kinds", ["pairs words", "pairs", "words"])
def test_all_is_written(tmp_path: Path, kinds: str) -> None:
    write_report(judgement(kinds), tmp_path, "c")
    assert {p.name for p in tmp_path.iterdir()} == {"summary.md", "summary.json", "downstream.png", "report.html"}
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["groups"][0]["kind"] == "all" and [arm["name"] for arm in found["arms"]] == ["first", "second"]
    assert (tmp_path / "downstream.png").read_bytes().startswith(b"\x89PNG")
