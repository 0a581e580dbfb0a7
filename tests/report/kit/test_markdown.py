from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.pages import page

from ropewalk.errors import ArgumentError
from ropewalk.report.kit.markdown import markdown, table_lines, write_pages
from ropewalk.report.kit.page import Download, Folded, Page, Paragraph, Picture, Reproduce, Section, Table


def test_every_part_has_its_lines() -> None:
    parts = [
        Section("What came out"),
        Paragraph("Words."),
        Table(("a|b", "c"), [("1", "2")], "Of a table."),
        Picture(b"", "png", "A curve", "Steps.", "curves.png"),
        Folded("All tried", [Table(("x",), [("y",)])]),
        Section("How this was made"),
        Reproduce("ropewalk train", {"seeds": "0 to 2"}),
        Download("summary.json", b"{}", "application/json"),
    ]
    assert markdown(Page("Title", "Verdict.", parts)).split("\n\n") == [
        "# Title",
        "Verdict.",
        "## What came out",
        "Words.",
        "Of a table.",
        "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |",
        "![A curve](curves.png)",
        "Steps.",
        "In report.html: All tried.",
        "## How this was made",
        "- command: `ropewalk train`\n- seeds: 0 to 2",
        "Data: summary.json.\n",
    ]


def test_what_only_a_browser_draws_is_left_to_it() -> None:
    text = markdown(page())
    assert "svg" not in text and "![" not in text and "## How this was made" in text
    assert "In report.html: Right.\n" in text and "In report.html: Heads.\n" in text


def test_both_are_written_or_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    write_pages(page(), tmp_path)
    assert (tmp_path / "summary.md").read_text() == markdown(page())
    assert (tmp_path / "report.html").read_text() == page().html()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="choose another place"):
        write_pages(page(), tmp_path / "file")


def test_a_table_of_nothing_has_its_header() -> None:
    assert table_lines(("a",), []) == ["| a |", "| --- |"]


def test_no_text_becomes_a_tag() -> None:
    bad = "<script>alert(1)</script> & co"
    parts = [Section(bad), Paragraph(bad), Table((bad, "b"), [(bad, "c")], bad), Reproduce("x", {bad: bad})]
    text = markdown(Page(bad, bad, parts))
    assert "<" not in text and text.count("&lt;script>") == 9 and "&amp; co" in text
    assert markdown(Page("t", "a `<b>` and <c>", [])).splitlines()[2] == "a `<b>` and &lt;c>"
    assert "<" not in markdown(Page("t", "a ` <c>", []))
