from __future__ import annotations

from ropewalk.report.kit.colours import line_style


def test_lines_differ_in_colour_and_in_mark() -> None:
    styles = [line_style(number) for number in range(66)]
    assert len({(s["color"], s["marker"], s["linestyle"]) for s in styles}) == 66
    assert len({s["color"] for s in styles[:6]}) == len({s["marker"] for s in styles[:6]}) == 6
