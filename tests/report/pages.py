"""Pages made by hand for the tests, hostile text, and HTML taken apart."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

import torch

from ropewalk.report.kit.page import (
    Download,
    Folded,
    HeadChart,
    HeadMap,
    HeatMaps,
    Page,
    Paragraph,
    Picture,
    Reproduce,
    Section,
    Table,
)

# What a model, a prompt or a file's name could hold to break out of wherever it is put.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onfocus=alert(1) autofocus x='",
    "</script><script>alert(1)</script><!--<script>",
    "</style></title></textarea><svg onload=alert(1)>",
    "&lt;b&gt; &amp; \u2028\u2029 ${alert(1)} `alert(1)` \\u003cscript\\u003e",
    "javascript:alert(1)",
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><circle cx="20" cy="10" r="8"/></svg>'
_VOID = {"meta", "link", "img", "br"}


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, tag: str, class_: str = "") -> list[Element]:
        """The elements of a tag and class in it, in the page's order."""
        found = []
        for child in self.children:
            if child.tag == tag and class_ in (child.attributes.get("class") or ""):
                found.append(child)
            found += child.all(tag, class_)
        return found

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(self.texts)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> ends another element"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.texts.append(data)


def parsed(page: str) -> Element:
    """The page's elements; every one of them ends where it should."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].tag}> never ends"
    return parser.root


def downloads(page: Element) -> dict[str, bytes]:
    """The files in a page, by name."""
    links = [a.attributes for a in page.all("a") if "download" in a.attributes]
    return {a["download"] or "": base64.b64decode((a["href"] or "").partition(",")[2]) for a in links}


def charts(layers: int, heads: int, n: int = 16, name: str = "") -> list[HeadChart]:
    """One chart of each kind, and lines with several series."""
    random = torch.Generator().manual_seed(0)
    values = torch.rand(layers, heads, 3, n, generator=random)
    heat = torch.rand(layers, heads, 8, n, generator=random)
    return [
        HeadChart(f"Lines{name}", "line", values, series=(f"plain{name}", "rule", "plan"), x_title="distance, tokens"),
        HeadChart("Bars", "bars", values[:, :, 0], x_title=f"pair{name}", y_title="norm"),
        HeadChart("One line", "line", values[:, :, 1], x=[float(i * i) for i in range(n)], caption=f"Squares.{name}"),
        HeadChart("Heat", "heat", heat, series=[f"token {i}{name}" for i in range(8)], y_title="token"),
    ]


def head_map(layers: int, heads: int, name: str = "", n: int = 16) -> HeadMap:
    """A map with two scores: the head's number, layer by layer, and that backwards; the first and last are marked."""
    score = [[float(layer * heads + head) for head in range(heads)] for layer in range(layers)]
    back = [[-v for v in row] for row in score]
    marked = {(0, 0), (layers - 1, heads - 1)}
    scores = {f"rising{name}": score, f"falling{name}": back}
    return HeadMap(f"Heads{name}", range(layers), heads, scores, charts(layers, heads, n, name), marked, f"Dots.{name}")


def page(name: str = "", layers: int = 4, heads: int = 20, n: int = 16) -> Page:
    """A page with one of every part, with `name` at the end of every text that can come from outside."""
    shares: list[list[float | None]] = [[0.0, 0.25, 0.5, 0.75, 1.0], [0.1, None, 0.3, 0.4, 0.5]]
    panels = {f"plain{name}": shares, "rule": [list(reversed(row)) for row in shares]}
    rows = [(f"plain{name}", "1 of 10 [0.02, 0.40]", f"more{name}"), ("rule", "9 of 10 [0.60, 0.98]", "-0.35")]
    wide = [[f"question {i}", *(f"an answer of several words, number {i}{name}" for _ in range(8))] for i in range(5)]
    return Page(
        f"A model{name}",
        f"The rule is better.{name}",
        [
            Section(f"Judged{name}"),
            Table(("encoding", "answers right", f"against{name}"), rows, f"95 % intervals{name}"),
            Paragraph(f"With `--budget` more.{name}"),
            HeatMaps(
                f"Right{name}", f"tokens{name}", (f"8,192{name}", "16,384"), "depth", list("abcde"), panels, "share"
            ),
            Section("Heads"),
            head_map(layers, heads, name, n),
            Picture(SVG, "svg", f"A disc{name}", f"A picture.{name}"),
            Section("How this was made"),
            Reproduce(f"ropewalk extend 'a model{name}' --length 16384", {f"seed{name}": f"0{name}"}),
            Folded(f"Answers{name}", [Table(("asked", *(f"arm {i}" for i in range(8))), wide)]),
            Download(f"results{name}.jsonl", f'{{"a": "{name}"}}\n'.encode(), "application/jsonl"),
        ],
    )
