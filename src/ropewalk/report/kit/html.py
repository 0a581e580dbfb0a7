"""HTML put together so that text can't become markup: what isn't `Markup` is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

Attribute: TypeAlias = "str | int | bool | None"
# Elements that have no content and no end tag.
_VOID = frozenset({"meta", "link", "img", "br"})


class Markup(str):
    """Text that is HTML already; only this file's functions make it from other text."""

    __slots__ = ()


def element(_tag: str, *children: str | None, **attributes: Attribute) -> Markup:
    """An element; text inside it and in its attributes is escaped.

    Args:
        _tag: its name.
        children: text, or Markup, which stays as it is; None is left out.
        attributes: `class_` and `for_` lose their underscore, others inside a name become hyphens; True is an attribute
            without a value, False and None leave it out.
    """
    end = "" if _tag in _VOID else f"{joined(*children)}</{_tag}>"
    return Markup(f"<{_tag}{_attributes(attributes)}>{end}")


def joined(*children: str | None) -> Markup:
    """Text and Markup one after the other, the text escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))


def raw(_tag: str, content: str, **attributes: Attribute) -> Markup:
    """A script or style element: its content isn't HTML, so nothing in it can be escaped.

    Raises:
        ValueError: the content would end the element, which only a mistake in this package can bring about.
    """
    if "</" + _tag in content.lower() or "<!--" in content:
        raise ValueError(f"the content of <{_tag}> holds what would end it")
    return Markup(f"<{_tag}{_attributes(attributes)}>{content}</{_tag}>")


def data_block(value: Any, **attributes: Attribute) -> Markup:
    """A script element of JSON, which `JSON.parse` reads from its text and which no content can break out of."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return raw("script", text, type="application/json", **attributes)


def data_link(content: bytes, media_type: str) -> str:
    """A data: address with the content in it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _attributes(given: Mapping[str, Attribute]) -> str:
    words = []
    for name, value in given.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        words.append(f" {name}" if value is True else f' {name}="{html.escape(str(value))}"')
    return "".join(words)
