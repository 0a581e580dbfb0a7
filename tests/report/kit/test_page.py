"""The page as a file: self-contained, well-formed, and safe whatever is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from tests.report.pages import HOSTILE, SVG, Element, page, parsed

from ropewalk.errors import ArgumentError
from ropewalk.report.kit.page import Download, Folded, Page, Paragraph, Picture, Reproduce, Section, Table


def every(root: Element) -> list[Element]:
    return [e for child in root.children for e in [child, *every(child)]]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_and_no_attribute(text: str) -> None:
    """Taken apart, the page has the same elements with the same attributes' names as one with harmless text."""
    harmless, hostile = every(parsed(page(" name").html())), every(parsed(page(text).html()))
    # Backticks in a paragraph make <code>, which does nothing.
    there = [(e.tag, list(e.attributes)) for e in harmless if e.tag != "code"]
    assert [(e.tag, list(e.attributes)) for e in hostile if e.tag != "code"] == there
    told = "".join(
        e.text for e in hostile if e.tag in ("h1", "h2", "td", "th", "dd", "dt", "summary", "code", "option")
    )
    assert told.count(text) >= 15


def test_no_address_leads_out_of_the_page() -> None:
    for element in every(parsed(page().html())):
        for name in ("src", "href", "action", "xlink:href"):
            address = element.attributes.get(name)
            assert address is None or address.startswith(("data:", "#"))
    text = page().html()
    assert "@import" not in text and "url(" not in text
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))


def test_the_policy_allows_this_script_and_style_alone() -> None:
    root = parsed(page().html())
    (policy,) = [m.attributes["content"] for m in root.all("meta") if "http-equiv" in m.attributes]
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    code = [s for s in root.all("script") if "type" not in s.attributes]
    for (element,), directive in ((code, "script-src"), (root.all("style"), "style-src")):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert not any(name.startswith("on") or name == "style" for e in every(root) for name in e.attributes)


def test_ids_are_unique_and_everything_that_points_at_one_finds_it() -> None:
    elements = every(parsed(page().html()))
    ids = [e.attributes["id"] for e in elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for e in elements:
        pointed = [e.attributes.get("aria-labelledby"), (e.attributes.get("href") or "").partition("#")[2]]
        assert all(target in ids for target in pointed if target)


def test_the_verdict_comes_first_and_sections_have_headings() -> None:
    root = parsed(page().html())
    (header,), sections = root.all("header"), root.all("section")
    assert [c.tag for c in header.children] == ["h1", "p", "nav"] and header.children[1].text == "The rule is better."
    assert [s.children[0].text for s in sections] == ["Judged", "Heads", "How this was made"]
    assert [a.text for a in header.all("a")] == ["Judged", "Heads", "How this was made"]
    assert root.all("html")[0].attributes["lang"] == "en" and root.all("title")[0].text == "A model"


def test_parts_before_the_first_section_and_few_sections() -> None:
    root = parsed(Page("t", "v", [Paragraph("before"), Section("one"), Paragraph("after")]).html())
    assert [s.text for s in root.all("section")] == ["before", "oneafter"] and root.all("nav") == []
    assert parsed(Page("t", "v", []).html()).all("section") == []


def test_figures_stand_at_the_right_of_their_column() -> None:
    rows = [["a", "12 of 60 [0.1, 0.2]", "+1.250", "", "x"], ["1", "–", "−0.3", "7", "2"]]
    (table,) = parsed(Table(["n", "right", "against", "gap", "text"], rows).html("p")).all("table")
    for row in table.all("tr"):
        assert [c.attributes.get("class") for c in row.children] == [None, "figure", "figure", "figure", None]
    assert [r.children[0].tag for r in table.all("tr")] == ["th"] * 3


def test_a_table_whose_row_is_too_short_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"rows=\['a'\].*2 cells"):
        Table(["one", "two"], [["a"]])


@pytest.mark.parametrize(
    ("text", "codes", "said"),
    [
        ("with `--budget`, say", ["--budget"], "with --budget, say"),
        ("a ` alone", [], "a ` alone"),
        ("`a` and `b", ["a"], "a and `b"),
        ("`<b>`", ["<b>"], "<b>"),
        ("plain", [], "plain"),
    ],
)
def test_backticks_in_a_paragraph(text: str, codes: list[str], said: str) -> None:
    (paragraph,) = parsed(Paragraph(text).html("p")).children
    assert ([c.text for c in paragraph.all("code")], paragraph.text) == (codes, said)


def test_pictures_and_downloads_hold_their_bytes() -> None:
    (image,) = parsed(Picture(SVG, "svg", "A box", "c").html("p")).all("img")
    assert image.attributes["alt"] == "A box"
    assert base64.b64decode((image.attributes["src"] or "").removeprefix("data:image/svg+xml;base64,")) == SVG
    (paragraph,) = parsed(Download("r.jsonl", b"x" * 2500, "application/jsonl").html("p")).children
    assert paragraph.text == "r.jsonl (2.5 kB)" and paragraph.all("a")[0].attributes["download"] == "r.jsonl"
    with pytest.raises(ArgumentError, match="kind='gif'"):
        Picture(b"", "gif", "x")


def test_folded_parts_and_facts() -> None:
    table = Table(["a"], [["b"]], "c")
    root = parsed(Page("t", "v", [Folded("More", [table, table]), table]).html())
    assert root.all("summary")[0].text == "More" and len(root.all("details")[0].all("table")) == 2
    names = [t.attributes["aria-labelledby"] for t in root.all("table")]
    assert len(set(names)) == 3
    facts = parsed(Reproduce("ropewalk", {"seed": "0", "torch": "2"}).html("p"))
    assert [e.text for e in facts.all("dl")[0].children] == ["seed", "0", "torch", "2"]
    assert parsed(Reproduce("ropewalk", {}).html("p")).all("dl") == []


def test_the_file_is_written_whole_also_with_half_a_surrogate_pair(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    Page("a\ud800b", "verdict", [Download("a\udcff", b"", "text/plain")]).write(path)
    text = path.read_text(encoding="utf-8")
    assert "<h1>a\ufffdb</h1>" in text and text.startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cant_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ArgumentError, match="out="):
        page().write(tmp_path / "file" / "report.html")
