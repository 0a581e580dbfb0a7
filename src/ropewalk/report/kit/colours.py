"""The colours of heat maps: dark to bright without a break, so that their order is seen in grey as well."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from ropewalk.report.kit.html import Markup, element

STEPS = 64
# The colour map's darkest end is left out: on a dark page it would be hard to see.
_DARKEST = 0.04
# Black and white text have the same contrast on a ground of this luminance (WCAG 2).
_MIDDLE_LUMINANCE = 0.179
MISSING = "missing"


@functools.cache
def colours() -> tuple[str, ...]:
    """STEPS colours from dark to bright, as `#rrggbb`: matplotlib's viridis, which colour-blind readers can tell."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    return tuple(to_hex(viridis(_DARKEST + (1 - _DARKEST) * i / (STEPS - 1))) for i in range(STEPS))


def style() -> str:
    """A rule a step, for the classes c0, c1, ...: its ground, and text that can be read on it."""
    return "".join(f".c{i}{{background:{c};color:{_text_on(c)}}}" for i, c in enumerate(colours()))


class Scale:
    """Values to colours, evenly from the lowest to the highest.

    Args:
        values: all that are to be shown; None and what isn't finite have no colour.
        is_reversed: whether the lowest gets the bright end.
        more_decimals: how many more than it takes to tell the values apart at a glance.
    """

    def __init__(self, values: Iterable[float | None], is_reversed: bool = False, more_decimals: int = 0):
        known = [v for v in values if v is not None and math.isfinite(v)]
        self.low, self.high = min(known, default=0.0), max(known, default=0.0)
        self.is_reversed = is_reversed
        self.decimals = min(6, decimals(self.low, self.high) + more_decimals)

    def colour(self, value: float | None) -> str:
        """The class that colours a value."""
        if value is None or not math.isfinite(value):
            return MISSING
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        step = min(STEPS - 1, int(share * STEPS))
        return f"c{STEPS - 1 - step if self.is_reversed else step}"

    def text(self, value: float | None) -> str:
        """A value with as many decimals as all of the scale have."""
        return "–" if value is None or not math.isfinite(value) else f"{value:,.{self.decimals}f}"

    def legend(self, unit: str, *notes: Markup) -> Markup:
        """What the colours mean: a bar of them between the lowest and the highest value, and notes beside it."""
        steps = range(0, STEPS, 2)
        bar = [element("i", class_=f"c{STEPS - 1 - i if self.is_reversed else i}") for i in steps]
        low, high = (element("span", self.text(v), class_=name) for v, name in ((self.low, "low"), (self.high, "high")))
        named = element("span", unit, class_="unit") if unit else None
        return element(
            "p", low, element("span", *bar, class_="bar", aria_hidden="true"), high, named, *notes, class_="legend"
        )


def decimals(low: float, high: float) -> int:
    """How many decimals tell values between these two apart: two for values around 1, more for small or close ones."""
    largest, width = max(abs(low), abs(high)), high - low
    if largest == 0:
        return 0
    size = math.floor(math.log10(largest))
    wanted = 2 - size if size >= 0 else 1 - size
    if width > 0:
        wanted = max(wanted, 1 - math.floor(math.log10(width)))
    return min(6, max(0, wanted))


def _text_on(colour: str) -> str:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000" if luminance > _MIDDLE_LUMINANCE else "#fff"


# One colour a candidate, told apart by colour-blind readers too (Okabe and Ito's palette).
COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
# Lines are told by their colour or, in grey, by their mark: the seventh has the first one's colour and another mark.
_COLOURS = (*COLOURS[1:], COLOURS[0])
_MARKS = "osD^vPXdph<"
_DASHES = ("-", "--", ":")


def line_style(number: int) -> dict[str, Any]:
    """The style of line `number`, counted from 0, as matplotlib's arguments; 66 lines have different ones."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKS[number % len(_MARKS)],
        "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        "markersize": 5,
    }
