"""The table, the sentence, the page and the picture of a recalibration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.report.pages import downloads, parsed

from ropewalk.report.kit.markdown import markdown
from ropewalk.report.recalibration import draw_curves, header, page, rows, verdict, write_report
from ropewalk.training.held_out import HeldOut
from ropewalk.training.recalibrate import Outcome, Recalibration

WANTED = Recalibration("some/model", "pope", steps=20, length=512)
BEFORE = HeldOut(2.9, {1: (3.0, 3.2), 2: (3.1,), 4: (3.3,)})
SWAPPED = HeldOut(8.9, {1: (9.0, 9.2), 2: (9.1,), 4: (9.3,)})
AFTER = HeldOut(3.4, {1: (3.5, 3.9), 2: (3.7,)})
FOUND = Outcome("pope", 0, 20, 81_920, 1000, 10, BEFORE, SWAPPED, AFTER, 0.9, 120.0, 0.012)
RUN = {"model": {"fingerprint": "f00d"}, "encoding": {"kind": "pope"}, "data_sha256": "beef"}


def test_the_table_has_a_row_a_measurement_and_a_column_a_length() -> None:
    assert header(WANTED, FOUND) == (
        "",
        "validation",
        "at 512 tokens",
        "at 1,024 tokens",
        "at 2,048 tokens",
        "change at 512",
    )
    was, swapped, after = rows(FOUND)
    assert was[:2] == ("as it was", "2.900") and was[3:] == ("3.100", "3.300", "")
    assert was[2].startswith("3.100 (") and swapped[5] == "+6.000 (+6.000 to +6.000)"
    assert after[0] == "after 20 steps" and after[4] == "–" and after[5].startswith("+0.600 (")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ("cost 6.000 nats a token at 512 tokens", "won back 90% of it: 3.700 against 3.100", "120 s")),
        ({"recovered": None}, ("Swapping to pope cost nothing", "by +0.600 nats a token at 512")),
        ({"diverged": 7, "recovered": None}, ("no longer a number at step 7", "lower learning rate")),
        ({"after": HeldOut(None, {1: (None, 3.9)}), "recovered": None}, ("isn't a number",)),
    ],
)
def test_the_verdict_says_what_was_lost_and_won(changes: dict[str, object], said: tuple[str, ...]) -> None:
    found = verdict(WANTED, dataclasses.replace(FOUND, **changes))  # type: ignore[arg-type]
    assert all(part in found for part in said) and "\n" not in found


def test_a_model_left_as_it_was_has_no_row_for_a_swap() -> None:
    wanted, found = (
        dataclasses.replace(WANTED, encoding="own"),
        dataclasses.replace(FOUND, encoding="own", after_swap=BEFORE, recovered=None),
    )
    assert [row[0] for row in rows(found)] == ["as it was", "after 20 steps"]
    assert verdict(wanted, found).startswith("The encoding is as it was; 20 steps")


def test_the_page_says_how_it_was_made() -> None:
    text = markdown(page(WANTED, FOUND, RUN, "ropewalk recalibrate some/model", b"", {}))
    assert "`ropewalk recalibrate some/model`" in text and "f00d" in text and "beef" in text
    assert "2 of 512 tokens" in text and "learning rate 0.0003" in text and "1.2%" in text
    assert "| as it was | 2.900 |" in text and "](curves.png)" in text


def test_the_picture_has_both_levels_and_begins_after_the_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), real(self, *a, **k))[1])
    points = [{"step": 1, "loss": 8.0}, {"step": 2, "loss": 5.0, "metric": 5.5}, {"step": 3, "loss": None}]
    draw_curves(WANTED, FOUND, points, tmp_path / "curves.png")
    draw_curves(WANTED, dataclasses.replace(FOUND, recovered=None), [], tmp_path / "curves.png")
    names = [[line.get_label() for line in figure.axes[0].get_lines()] for figure in drawn]
    assert names[0] == ["training", "validation", "as it was, validation", "right after the swap, validation"]
    assert names[1] == ["validation", "as it was, validation"]
    assert "some/model: pope" in drawn[0].axes[0].get_title()
    training, validation, before, swapped = drawn[0].axes[0].get_lines()
    assert list(training.get_xdata()) == [1, 2] and list(validation.get_xdata()) == [0, 2]
    assert list(validation.get_ydata()) == [8.9, 5.5]
    assert before.get_ydata()[0] == 2.9 and swapped.get_ydata()[0] == 8.9
    assert len({line.get_linestyle() for line in (validation, before, swapped)}) == 3


def test_a_report_is_written_beside_the_run(tmp_path: Path) -> None:
    kept = {"run.json": json.dumps(RUN), "result.json": '{"steps": 20}\n', "curve.jsonl": '{"step": 1, "loss": 8.0}\n'}
    for name, content in kept.items():
        (tmp_path / name).write_text(content)
    write_report(WANTED, FOUND, tmp_path, "ropewalk recalibrate")
    assert {p.name for p in tmp_path.iterdir()} == {*kept, "summary.md", "curves.png", "report.html"}
    raw = downloads(parsed((tmp_path / "report.html").read_text()))
    assert raw == {name: kept[name].encode() for name in ("result.json", "curve.jsonl")}


def test_the_page_says_when_the_model_may_have_read_what_is_held_out() -> None:
    text = [
        markdown(page(WANTED, dataclasses.replace(FOUND, read_before=seen), RUN, "x", b"", {}))
        for seen in (False, True)
    ]
    assert "nothing here is trained on" in text[0] and "may have read them" in text[1]
