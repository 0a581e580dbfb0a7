"""A page as Markdown, from the same parts: what a table, a sentence or a link can say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ropewalk.files import write_atomically
from ropewalk.report.page import Download, Page, Paragraph, Part, Picture, Reproduce, Section, Table


def markdown(page: Page) -> str:
    """The page as text. Maps, which only a browser draws, and what is folded away are named and left to report.html."""
    lines = [f"# {page.title}", "", page.verdict, ""]
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
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells]


def _lines(part: Part) -> list[str]:
    """A part's lines, with an empty one after them."""
    if isinstance(part, Section):
        return [f"## {part.title}", ""]
    if isinstance(part, Paragraph):
        return [part.text, ""]
    if isinstance(part, Table):
        caption = [part.caption, ""] if part.caption else []
        return [*caption, *table_lines(part.header, part.rows), ""]
    if isinstance(part, Picture) and part.name:
        caption = [part.caption, ""] if part.caption else []
        return [f"![{part.alt}]({part.name})", "", *caption]
    if isinstance(part, Reproduce):
        return [f"- command: `{part.command}`", *(f"- {name}: {fact}" for name, fact in part.facts.items()), ""]
    if isinstance(part, Download):
        return [f"Data: {part.name}.", ""]
    title = getattr(part, "title", "")
    return [f"In report.html: {title}.", ""] if title else []
