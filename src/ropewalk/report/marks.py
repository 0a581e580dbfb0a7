"""The colours of all pictures, and which colour, mark and dash the n-th line of one has."""

from __future__ import annotations

from typing import Any

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
