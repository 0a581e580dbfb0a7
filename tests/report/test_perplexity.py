"""The tables and the picture of perplexity by length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.data.text import text_of
from ropewalk.data.windows import Books
from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.evaluated_model import Subject
from ropewalk.evaluation.likelihood import Reading
from ropewalk.evaluation.perplexity import Study, curves
from ropewalk.report.kit.markdown import markdown
from ropewalk.report.perplexity import header, page, perplexity_rows, title, verdict, what_was_read, write_report


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


def compared(*arms: tuple[str, list[float]]) -> Study:
    """Arms by name and by nats at 128 tokens, twice the training length, in each of eight windows."""
    reading = Reading(64, 2)
    rows = [Arm(name, subject(name)) for name, _ in arms]
    nats = {name: [[1.0, nat] for nat in held] for name, held in arms}
    books = Books(text_of("a text " * 9, "kjv"), reading.window, 8, 7, "all")
    return Study(books, reading, 0.0, (), tuple(curves(rows, reading, nats)))


WINDOWS = [1.0, 1.4, 1.8, 1.2, 2.0, 1.6, 1.1, 1.9]
NOISE = [0.02, -0.03, 0.01, 0.03, -0.02, -0.01, 0.04, -0.04]


def shifted(by: float, sign: float = 1.0) -> list[float]:
    return [window + by + sign * noise for window, noise in zip(WINDOWS, NOISE, strict=True)]


def test_the_verdict_says_whether_the_lowest_stands_out() -> None:
    found = compared(("rope", WINDOWS), ("pope", shifted(-0.3)), ("nope", shifted(-0.305, -1.0)))
    against, p = found.against["nope"].adjusted, found.lead.by.adjusted  # type: ignore[union-attr]
    assert against < 1e-6 and p > 0.5
    assert verdict(found) == (
        "At 128 tokens, 2 times 64, nope has a perplexity of 3.30, 1.22 times its own at 64, the lowest of 3; "
        "rope has a perplexity of 4.48, 1.65 times its own. "
        f"nope is lower than the first, rope, beyond chance (p = {against:.2g}) "
        f"and not lower than the next, pope, beyond chance (p = {p:.2g}). "
        "p is corrected for the number of comparisons (Holm)."
    )


def test_the_verdict_is_short_where_the_first_is_the_lowest_or_the_next() -> None:
    first = compared(("rope", WINDOWS), ("pope", shifted(0.3)))
    p = first.against["pope"].adjusted
    assert verdict(first).startswith("At 128 tokens, 2 times 64, rope has a perplexity of 4.48")
    said = f"the lowest of 2. rope is lower than the next, pope, beyond chance (p = {p:.2g}). p is"
    assert said in verdict(first) and "first" not in verdict(first)
    following = compared(("rope", WINDOWS), ("pope", shifted(-0.001)))
    assert "pope is not lower than the first, rope, beyond chance (p = 0.9" in verdict(following)
    assert "next" not in verdict(following)


def test_the_verdict_of_one_model_or_one_window_claims_nothing() -> None:
    assert verdict(compared(("rope", WINDOWS))) == (
        "At 128 tokens, 2 times 64, rope has a perplexity of 4.48, 1.65 times its own at 64."
    )
    assert "rope is not lower than the next, pope, beyond chance (p = 1)" in verdict(study(windows=1))


def test_the_page_has_a_corrected_p_for_each_other_model() -> None:
    found = compared(("rope", WINDOWS), ("pope", shifted(-0.3)), ("nope", shifted(0.01)))
    text = markdown(page(found, "c", b"", "{}"))
    assert "| model | above rope at 128 tokens | p (Holm) |" in text
    for name, difference in (("pope", "-0.300 [-0.324, -0.276]"), ("nope", "+0.010 [-0.014, +0.034]")):
        assert f"| {name} | {difference} | {found.against[name].adjusted:.2g} |" in text
    alone = markdown(page(compared(("rope", WINDOWS)), "c", b"", "{}"))
    assert "p (Holm)" not in alone


@pytest.mark.parametrize("changed", [{}, {"windows": 1}, {"way": "sliding"}])
def test_all_is_written(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_report(study(**changed), tmp_path, "c")
    assert {p.name for p in tmp_path.iterdir()} == {"summary.md", "summary.json", "perplexity.png", "report.html"}
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [len(arm["points"]) for arm in found["arms"]] == [5, 5] and found["books"]["part"] == "test"
    assert found["arms"][1]["points"][0]["against"]["mean"] == pytest.approx(0.5) and found["command"] == "c"
    assert found["furthest"]["lead"]["lowest"] == "rope" and "pope" in found["furthest"]["against_first"]
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
