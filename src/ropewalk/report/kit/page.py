"""A report as one self-contained HTML file: no network, and no text of a model or a prompt that becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.io import write_atomically
from ropewalk.report.kit.colours import COLOURS, colours, style
from ropewalk.report.kit.head_map import HeadChart, HeadMap
from ropewalk.report.kit.heat_maps import HeatMaps
from ropewalk.report.kit.html import Markup, data_block, data_link, element, joined, raw

__all__ = [
    "Download",
    "Folded",
    "HeadChart",
    "HeadMap",
    "HeatMaps",
    "Page",
    "Paragraph",
    "Part",
    "Picture",
    "Reproduce",
    "Section",
    "Table",
]

_PICTURES = {"svg": "image/svg+xml", "png": "image/png"}
_SCRIPTS = ("charts.js", "heads.js", "page.js")
# Cells that are figures stand at the right of their column.
_FIGURE = re.compile(r"[-+−–]?[\d.,]*\d.*|[–-]?")
# Text from the command line or a file's name can hold halves of surrogate pairs, which no file can.
_SURROGATES = re.compile("[\ud800-\udfff]")


class Part(Protocol):
    """What a page is made of."""

    def html(self, part: str) -> Markup:
        """Its HTML; `part` is an id that no other part of the page has."""
        ...


@dataclass(frozen=True)
class Section:
    """A heading; the parts up to the next one belong to it."""

    title: str

    def html(self, part: str) -> Markup:
        return element("h2", self.title, id=part)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text, in which `backticks` set code apart."""

    text: str

    def html(self, part: str) -> Markup:
        pieces = self.text.split("`")
        if len(pieces) % 2 == 0:  # a backtick without its partner stays one
            pieces[-2:] = ["`".join(pieces[-2:])]
        return element("p", *(element("code", p) if i % 2 else p for i, p in enumerate(pieces)))


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row names it.

    Raises:
        ArgumentError: a row hasn't as many cells as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ArgumentError("rows", list(row), f"must have {len(self.header)} cells, as the header has")

    def html(self, part: str) -> Markup:
        others = range(1, len(self.header))
        kinds = [None, *("figure" if all(_FIGURE.fullmatch(row[i]) for row in self.rows) else None for i in others)]
        columns = list(zip(self.header, kinds, strict=True))
        head = element("tr", *(element("th", name, scope="col", class_=kind) for name, kind in columns))
        body = [
            element(
                "tr",
                element("th", row[0], scope="row"),
                *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
            )
            for row in self.rows
        ]
        # Not a <caption>, which would scroll out of sight with a wide table.
        id = f"{part}-caption" if self.caption else None
        caption = element("p", self.caption, class_="caption", id=id) if self.caption else None
        table = element("table", element("thead", head), element("tbody", *body), aria_labelledby=id)
        return joined(caption, element("div", table, class_="scroll"))


@dataclass(frozen=True)
class Picture:
    """A picture; `alt` says in a sentence what it shows, `kind` is "svg" or "png", `name` its file's, if it has one."""

    content: bytes
    kind: str
    alt: str
    caption: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _PICTURES:
            raise unknown_name("kind", self.kind, _PICTURES)

    def html(self, part: str) -> Markup:
        image = element("img", src=data_link(self.content, _PICTURES[self.kind]), alt=self.alt)
        return element("figure", image, element("figcaption", self.caption) if self.caption else None, class_="picture")


@dataclass(frozen=True)
class Folded:
    """Parts that are out of sight until they are asked for."""

    title: str
    parts: Sequence[Part]

    def html(self, part: str) -> Markup:
        inside = [p.html(f"{part}-{i}") for i, p in enumerate(self.parts)]
        return element("details", element("summary", self.title), *inside)


@dataclass(frozen=True)
class Reproduce:
    """The command that made the page, and what else decides its figures: versions, seeds, machine, fingerprints."""

    command: str
    facts: Mapping[str, str]

    def html(self, part: str) -> Markup:
        button = element("button", "Copy", type="button", class_="copy", hidden=True)
        command = element("div", element("pre", element("code", self.command)), button, class_="command")
        facts = [joined(element("dt", name), element("dd", value)) for name, value in self.facts.items()]
        return joined(command, element("dl", *facts) if facts else None)


@dataclass(frozen=True)
class Download:
    """A file inside the page, to be saved."""

    name: str
    content: bytes
    media_type: str

    def html(self, part: str) -> Markup:
        link = element("a", self.name, href=data_link(self.content, self.media_type), download=self.name)
        return element("p", link, f" ({_size(len(self.content))})", class_="download")


@dataclass(frozen=True)
class Page:
    """A page: its verdict first, then its parts.

    Args:
        title: the page's name.
        verdict: what was found, in a sentence.
        parts: what follows, from top to bottom.
    """

    title: str
    verdict: str
    parts: Sequence[Part]

    def write(self, path: Path) -> None:
        """Write the whole page, or nothing.

        Raises:
            ArgumentError: the place can't be written.
        """
        write_atomically(path, self.html())

    def html(self) -> str:
        """The page as text."""
        script = "".join(_text_of(name) for name in _SCRIPTS)
        looks = _text_of("page.css") + _line_colours() + style()
        body = element(
            "body",
            element(
                "header", element("h1", self.title), element("p", self.verdict, class_="verdict"), self._contents()
            ),
            element("main", *self._sections()),
            data_block(list(colours()), id="colours"),
            raw("script", script),
        )
        page = "<!doctype html>\n" + element("html", self._head(script, looks), body, lang="en") + "\n"
        return _SURROGATES.sub("\ufffd", page)

    def _head(self, script: str, looks: str) -> Markup:
        # Whatever a text in the page might smuggle in: no script but ours runs, and nothing can be fetched or sent.
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(looks)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        )
        return element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", self.title),
            element("link", rel="icon", href="data:,"),  # else a browser asks the server for one
            raw("style", looks),
        )

    def _contents(self) -> Markup | None:
        """Links to the sections, where there are enough to get lost among."""
        found = [(f"part-{i}", part.title) for i, part in enumerate(self.parts) if isinstance(part, Section)]
        if len(found) < 3:
            return None
        links = [element("li", element("a", title, href=f"#{id}")) for id, title in found]
        return element("nav", element("ul", *links), aria_label="Contents")

    def _sections(self) -> list[Markup]:
        groups: list[list[tuple[str, Part]]] = [[]]
        for number, part in enumerate(self.parts):
            if isinstance(part, Section):
                groups.append([])
            groups[-1].append((f"part-{number}", part))
        return [
            element("section", *(part.html(id) for id, part in group), aria_labelledby=_heading(group))
            for group in groups
            if group
        ]


def _heading(group: Sequence[tuple[str, Part]]) -> str | None:
    id, part = group[0]
    return id if isinstance(part, Section) else None


def _text_of(name: str) -> str:
    return resources.files("ropewalk.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _line_colours() -> str:
    """Colours of the series of charts, the grey last."""
    return "".join(f".s{i}{{--series:{colour}}}" for i, colour in enumerate((*COLOURS[1:], COLOURS[0])))


def _size(number: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
