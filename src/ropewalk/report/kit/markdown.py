"""A page as Markdown, from the same parts: what a table, a sentence or a link can say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ropewalk.io import write_atomically
from ropewalk.report.kit.page import Download, Page, Paragraph, Part, Picture, Reproduce, Section, Table


def markdown(page: Page) -> str:
    """The page as text. Maps, which only a browser draws, and what is folded away are named and left to report.html."""
    lines = [f"# {_text(page.title)}", "", _text(page.verdict), ""]
    for part in page.parts:
        lines += _lines(part)
    return "\n".join(lines)


def write_pages(page: Page, folder: Path) -> None:
    """Write report.html and, as Markdown, summary.md; raises ArgumentError where they can't be."""
    write_atomically(folder / "summary.md", markdown(page))
    page.write(folder / "report.html")


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_text(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in cells]


def _text(text: str) -> str:
    """A text in which nothing becomes a tag; between backticks nothing does anyway."""
    parts = text.split("`")
    outside = slice(None, None, 2) if len(parts) % 2 else slice(None)  # a backtick without its other sets nothing apart
    parts[outside] = [part.replace("&", "&amp;").replace("<", "&lt;") for part in parts[outside]]
    return "`".join(parts)


def _lines(part: Part) -> list[str]:
    """A part's lines, with an empty one after them."""
    if isinstance(part, Section):
        return [f"## {_text(part.title)}", ""]
    if isinstance(part, Paragraph):
        return [_text(part.text), ""]
    if isinstance(part, Table):
        caption = [_text(part.caption), ""] if part.caption else []
        return [*caption, *table_lines(part.header, part.rows), ""]
    if isinstance(part, Picture) and part.name:
        caption = [_text(part.caption), ""] if part.caption else []
        return [f"![{_text(part.alt)}]({part.name})", "", *caption]
    if isinstance(part, Reproduce):
        facts = [f"- {_text(name)}: {_text(fact)}" for name, fact in part.facts.items()]
        return [f"- command: `{part.command}`", *facts, ""]
    if isinstance(part, Download):
        return [f"Data: {part.name}.", ""]
    title = getattr(part, "title", "")
    return [f"In report.html: {_text(title)}.", ""] if title else []
