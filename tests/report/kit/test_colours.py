"""Colours in the order of the values, in grey too, with text that can be read on them."""

from __future__ import annotations

import math
import re

import pytest
from tests.report.pages import parsed

from ropewalk.report.kit.colours import MISSING, STEPS, Scale, colours, decimals, style


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_brighter_means_more_in_grey() -> None:
    grey = [luminance(colour) for colour in colours()]
    assert len(grey) == STEPS and grey == sorted(grey) and grey[-1] - grey[0] > 0.6


def test_text_can_be_read_on_every_colour() -> None:
    rules = re.findall(r"\.c(\d+)\{background:(#\w{6});color:(#\w{3})\}", style())
    assert [int(number) for number, _, _ in rules] == list(range(STEPS))
    for _, ground, text in rules:
        light, dark = sorted((luminance(ground), 1.0 if text == "#fff" else 0.0), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_ends_and_the_middle_of_a_scale() -> None:
    scale = Scale([2.0, None, 4.0, float("nan"), float("inf")])
    assert [scale.colour(v) for v in (2.0, 3.0, 4.0)] == ["c0", f"c{STEPS // 2}", f"c{STEPS - 1}"]
    assert [scale.colour(v) for v in (None, math.nan, math.inf)] == [MISSING] * 3
    assert [scale.text(v) for v in (2.0, None)] == ["2.00", "–"]
    backwards = Scale([2.0, 4.0], is_reversed=True)
    assert [backwards.colour(v) for v in (2.0, 4.0)] == [f"c{STEPS - 1}", "c0"]


def test_a_scale_of_one_value_or_of_none() -> None:
    assert Scale([0.5, 0.5]).colour(0.5) == f"c{STEPS // 2}"
    assert Scale([]).colour(None) == MISSING and Scale([None]).low == 0.0


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, 2), (0, 0.95, 2), (0.1, 9.9, 2), (0, 34.0, 1), (0, 8192, 0), (0, 0.034, 3), (3.001, 3.009, 4), (0, 0, 0)],
)
def test_decimals(low: float, high: float, wanted: int) -> None:
    assert decimals(low, high) == wanted == decimals(-high, -low)
    assert Scale([low, high], more_decimals=2).decimals == min(6, wanted + 2)


def test_a_legend_tells_both_ends() -> None:
    for is_reversed, first in ((False, "c0"), (True, f"c{STEPS - 1}")):
        (legend,) = parsed(Scale([0.0, 2.5], is_reversed).legend("nats a <token>")).children
        assert legend.text == "0.002.50nats a <token>"
        assert legend.all("i")[0].attributes["class"] == first
