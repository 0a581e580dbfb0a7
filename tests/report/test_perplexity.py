"""The tables and the picture of perplexity by length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.by_position import Reading
from ropewalk.evaluation.perplexity import Study, curves
from ropewalk.evaluation.subjects import Subject
from ropewalk.report.markdown import markdown
from ropewalk.report.perplexity import header, page, perplexity_rows, title, verdict, what_was_read, write_report
from ropewalk.tasks.books import Books
from ropewalk.tasks.haystack import text_of


def subject(name: str) -> Subject:
    about: Any = {"fingerprint": name}
    return Subject(f"out/{name}", name, None, None, None, about, None, "", None, lambda _: True, None, 100)


ARMS = [Arm("rope", subject("rope")), Arm("pope", subject("pope"))]


def study(windows: int = 3, part: str = "test", trained: tuple[str, ...] = ("rope", "pope"), **changed: Any) -> Study:
    """Nats 1 + 0.1 k + 0.01 w at k training lengths in window w for the first, a half of k more for the second."""
    reading = Reading(**({"training_length": 64, "furthest": 5} | changed))
    nats = {
        arm.name: [[1 + (0.1 + 0.5 * slope) * k + 0.01 * w for k in range(1, 6)] for w in range(windows)]
        for slope, arm in enumerate(ARMS)
    }
    books = Books(text_of("a text " * 9, "kjv"), reading.window, windows, 7, part)
    return Study(books, reading, 0.0, trained, tuple(curves(ARMS, reading, nats)))


def test_columns_are_lengths_that_double_and_the_furthest() -> None:
    assert header(study()) == ("model", "64 tokens", "128 tokens", "256 tokens", "320 tokens")


def test_figures_are_perplexities_with_intervals() -> None:
    rope, pope = perplexity_rows(study())
    assert rope[:2] == ("rope", "3.03 [2.96, 3.11]")  # exp(1.11), and exp of 0.0248 below and above
    assert pope[4].startswith("55.15 [")
    assert perplexity_rows(study(windows=1))[0][1] == "3.00"


def test_large_figures_stay_readable() -> None:
    found = study(windows=2)
    huge = [[600.0, 2, 3, 4, 5], [0.0, 2, 3, 4, 5]]
    changed = Study(
        found.books, found.reading, 0.0, (), tuple(curves(ARMS, found.reading, {"rope": huge, "pope": huge}))
    )
    assert perplexity_rows(changed)[0][1] == "1.9e+130 [0.00, 1.0e+304]"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "3 windows of 320 tokens from the test part of kjv; models trained on its train part: rope; pope."),
        ({"part": "all"}, "this isn't held out for the models that were trained on its train part (rope; pope)"),
        ({"part": "all", "trained": ()}, "all of kjv; no model here is known to have been trained on this text."),
        ({"windows": 1}, "1 window of 320 tokens from the test part of kjv"),
        ({"windows": 1}, "One window gives no interval."),
    ],
)
def test_what_was_read_is_said(changed: dict[str, Any], said: str) -> None:
    assert said in what_was_read(study(**changed))


def test_the_page_has_every_comparison_and_how_it_was_made() -> None:
    text = markdown(page(study(), "ropewalk perplexity x", b"", "{}"))
    for part in (
        "# Perplexity up to 5 times 64 tokens",
        "## Perplexity of the last 64 tokens of a text of so many",
        "## Perplexity of a whole text of so many tokens",
        "## Times its own figure at 64 tokens",
        "| pope | 1.00 [1.00, 1.00] | 1.82 [1.82, 1.82] |",
        "## Nats a token above rope, on the same windows",
        "| pope | +0.500 [+0.500, +0.500] | +1.000 [+1.000, +1.000] |",
        "`ropewalk perplexity x`",
        "- way: full; seed 7",
        "- models: out/rope, out/pope",
    ):
        assert part in text
    sliding = study(way="sliding", stride=16)
    text = markdown(page(sliding, "c", b"", "{}"))
    assert "of a whole text" not in text and "- way: sliding, stride 16; seed 7" in text
    assert title(sliding) == "perplexity of the same 64 tokens of a window behind so much context"


def test_the_verdict_is_about_the_furthest_length() -> None:
    first = "rope has a perplexity of 4.53, 1.49 times its own"
    assert verdict(study()) == f"At 320 tokens, 5 times 64, {first} at 64, the lowest of 2."
    found = study()
    turned = dataclasses.replace(found, curves=found.curves[::-1])
    assert verdict(turned).startswith(
        f"At 320 tokens, 5 times 64, {first} at 64, the lowest of 2; pope has a perplexity"
    )
    assert verdict(dataclasses.replace(found, curves=found.curves[:1])) == f"At 320 tokens, 5 times 64, {first} at 64."


@pytest.mark.parametrize("changed", [{}, {"windows": 1}, {"way": "sliding"}])
def test_all_is_written(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_report(study(**changed), tmp_path, "c")
    assert {p.name for p in tmp_path.iterdir()} == {"summary.md", "summary.json", "perplexity.png", "report.html"}
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [len(arm["points"]) for arm in found["arms"]] == [5, 5] and found["books"]["part"] == "test"
    assert found["arms"][1]["points"][0]["against"]["mean"] == pytest.approx(0.5) and found["command"] == "c"
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
