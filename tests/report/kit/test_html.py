"""Text never becomes markup, wherever it is put."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.pages import HOSTILE, parsed

from ropewalk.report.kit.html import Markup, data_block, data_link, element, joined, raw


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_between_tags_in_attributes_and_in_data(text: str) -> None:
    (found,) = parsed(element("p", text, title=text, data_name=text)).children
    assert (found.text, found.children) == (text, [])
    assert found.attributes == {"title": text, "data-name": text}
    (script,) = parsed(data_block({text: [text]})).children
    assert script.children == [] and json.loads(script.text) == {text: [text]}
    assert "<" not in script.text and "\u2028" not in script.text


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    text = text.replace("\r", "")  # HTML reads a carriage return as a new line
    (found,) = parsed(element("i", text, title=text)).children
    assert found.text == text and found.attributes["title"] == text
    (script,) = parsed(data_block(text)).children
    assert json.loads(script.text) == text


def test_markup_isnt_escaped_twice_and_nothing_is_left_out_but_none() -> None:
    assert element("p", element("b", "a&b"), None, "<") == "<p><b>a&amp;b</b>&lt;</p>"
    assert joined("<", Markup("<br>"), None) == "&lt;<br>"


def test_attributes() -> None:
    made = element("td", class_="c1", tabindex=-1, aria_label="x", hidden=True, disabled=False, title=None, colspan=0)
    assert made == '<td class="c1" tabindex="-1" aria-label="x" hidden colspan="0"></td>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


@pytest.mark.parametrize("content", ["a</script>b", "a</SCRIPT", "<!-- a"])
def test_a_script_that_would_end_itself_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match="would end it"):
        raw("script", content)


def test_nan_isnt_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        data_block([float("nan")])


def test_a_data_link_holds_the_bytes() -> None:
    link = data_link(b"\x00\xff<>", "text/plain")
    assert base64.b64decode(link.removeprefix("data:text/plain;base64,")) == b"\x00\xff<>"
