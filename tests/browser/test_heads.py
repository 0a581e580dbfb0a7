"""Maps and the heads behind them, by keyboard and by pointer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.browser.chromium import Seen, opened, tab_to, wait_for_text
from tests.report.pages import charts, page

from ropewalk.report.kit.page import HeadChart, HeadMap, Page

FOCUSED = "[document.activeElement.parentElement.sectionRowIndex, document.activeElement.cellIndex - 1]"


def readout(seen: Seen, map: str = ".heads") -> str:
    return str(seen.tab.locator(f"{map} .readout").first.text_content())


def test_a_head_is_opened_and_closed_with_the_keyboard_alone(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        press = seen.tab.keyboard.press
        tab_to(seen, ".heads td")
        assert seen.evaluate(FOCUSED) == [0, 0] and readout(seen).startswith("layer 0, head 0: 0.000, rank 1 of 80")
        assert seen.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
            press(key)
        assert seen.evaluate(FOCUSED) == [1, 1] and readout(seen).startswith("layer 1, head 1: 21.000, rank 22")
        panel = seen.tab.locator(".opened")
        assert not panel.is_visible()
        press("Enter")
        assert panel.is_visible()
        wait_for_text(panel.locator("h4"), "Layer 1, head 1")
        assert panel.locator(".chart").count() == 4
        press("ArrowLeft")  # an open head follows the focus
        wait_for_text(panel.locator("h4"), "Layer 1, head 0")
        assert seen.tab.locator("[aria-selected='true']").count() == 1
        press("Tab")
        assert seen.evaluate("document.activeElement.textContent") == "Close"
        press("Tab")
        assert seen.evaluate("document.activeElement.classList.contains('chart')")
        press("Escape")
        assert not panel.is_visible() and seen.evaluate(FOCUSED) == [1, 0]
        assert seen.tab.locator("[aria-selected='true']").count() == 0
        press("Space")
        assert panel.is_visible()
        panel.locator("button").click()
        assert not panel.is_visible() and seen.evaluate(FOCUSED) == [1, 0]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (["End"], [0, 19]),
        (["End", "Home"], [0, 0]),
        (["Control+End"], [3, 19]),
        (["Control+End", "Control+Home"], [0, 0]),
        (["PageDown"], [3, 0]),
        (["PageDown", "PageUp"], [0, 0]),
        (["ArrowUp", "ArrowLeft"], [0, 0]),
        (["Control+End", "ArrowDown", "ArrowRight"], [3, 19]),
    ],
)
def test_keys_that_go_far_and_edges(browser: Any, tmp_path: Path, keys: list[str], place: list[int]) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        seen.tab.locator(".heads td").first.focus()
        for key in keys:
            seen.tab.keyboard.press(key)
        assert seen.evaluate(FOCUSED) == place
        assert seen.tab.locator(".heads td[tabindex='0']").count() == 1


def test_heat_maps_tell_their_numbers_on_focus_and_on_hover(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        tab_to(seen, ".maps td")
        assert readout(seen, ".maps") == "plain: tokens 8,192, depth a: 0.00"
        seen.tab.keyboard.press("Tab")
        seen.tab.keyboard.press("ArrowRight")
        assert readout(seen, ".maps") == "rule: tokens 8,192, depth b: 0.75"
        seen.tab.locator(".maps td").nth(6).hover()
        assert readout(seen, ".maps") == "plain: tokens 16,384, depth b: –"
        seen.tab.locator("h1").hover()
        assert readout(seen, ".maps") in ("", "rule: tokens 8,192, depth b: 0.75")


def test_another_score_brings_other_colours_numbers_and_ranks(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        cells = seen.tab.locator(".heads td")
        before = [cells.nth(i).get_attribute("class") for i in (0, 40, 79)]
        assert before == ["c0 marked", "c32", "c63 marked"]
        seen.tab.locator("select").select_option("falling")
        assert [cells.nth(i).get_attribute("class") for i in (0, 40, 79)] == ["c63 marked", "c31", "c0 marked"]
        wait_for_text(cells.nth(79), "-79.000")
        wait_for_text(seen.tab.locator(".heads .low"), "-79.000")
        cells.nth(79).hover()
        assert readout(seen) == "layer 3, head 19: -79.000, rank 1 of 80 from the lowest"


def test_python_and_the_script_give_the_same_cells(browser: Any, tmp_path: Path) -> None:
    """What a map shows at the start is what the script makes of the same score."""
    for heads, unit, above in ((20, 1.0, 0.0), (20, 1e-4, 3.0), (9, 1e6, 0.0)):
        values = torch.randn(6, heads, dtype=torch.float64) * unit + above
        values[2, 3] = float("nan")
        scores = {"one": values.tolist(), "two": values.tolist()}
        made = Page("t", "v", [HeadMap("Heads", range(6), heads, scores)])
        with opened(browser, made, tmp_path / "report.html") as seen:
            state = "[...document.querySelectorAll('.heads td')].map((c) => [c.className, c.textContent])"
            ends = "['.low', '.high'].map((name) => document.querySelector(name).textContent)"
            before = seen.evaluate(f"[{state}, {ends}]")
            seen.tab.locator("select").select_option("two")
            assert seen.evaluate(f"[{state}, {ends}]") == before


def test_the_script_reads_the_values_that_were_written(browser: Any, tmp_path: Path) -> None:
    made = charts(3, 4, 7)
    scores = {"one": [[0.0] * 4] * 3}
    with opened(browser, Page("t", "v", [HeadMap("H", (5, 6, 7), 4, scores, made)]), tmp_path / "report.html") as seen:
        for number, chart in enumerate(made):
            found = seen.evaluate(
                """(number) => {
                const data = JSON.parse(document.querySelector(".data").textContent);
                const text = document.querySelectorAll(".numbers")[number].textContent;
                return Array.from({ length: 12 }, (_, head) => valuesOf(data.charts[number], text, head));
            }""",
                number,
            )
            wanted = chart.values if chart.values.ndim == 4 else chart.values[:, :, None]
            torch.testing.assert_close(torch.tensor(found).view(wanted.shape), wanted, atol=2.5e-3, rtol=1e-3)


def test_charts_tell_their_values_by_arrow_keys_pointer_and_table(browser: Any, tmp_path: Path) -> None:
    values = torch.tensor([[[[1.0, 2.0, float("nan")], [4.0, 5.0, 6.0]]]])
    made = [
        HeadChart("Lines", "line", values, [1.0, 10.0, 100.0], ("plain", "rule"), "tokens"),
        HeadChart("Heat", "heat", values, None, ("first", "second"), "column", "row"),
    ]
    with opened(
        browser, Page("t", "v", [HeadMap("H", (3,), 1, {"one": [[0.0]]}, made)]), tmp_path / "report.html"
    ) as seen:
        seen.tab.locator(".heads td").click()
        figures = seen.tab.locator(".charts > figure")
        said = figures.nth(0).locator(".chart").get_attribute("aria-label")
        assert said is not None and "Lines, layer 3, head 0: from 1 to 6." in said
        figures.nth(0).locator(".chart").focus()
        wait_for_text(figures.nth(0).locator(".readout"), "tokens 1: plain 1, rule 4")
        seen.tab.keyboard.press("ArrowRight")
        seen.tab.keyboard.press("ArrowRight")
        wait_for_text(figures.nth(0).locator(".readout"), "tokens 100: plain –, rule 6")
        figures.nth(1).locator(".chart").focus()
        seen.tab.keyboard.press("ArrowDown")
        wait_for_text(figures.nth(1).locator(".readout"), "second, column 0: 4.0")
        box = figures.nth(1).locator("image").bounding_box()
        assert box is not None
        seen.tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.25 * box["height"])
        wait_for_text(figures.nth(1).locator(".readout"), "first, column 2: –")
        figures.nth(0).locator("summary").click()
        row = figures.nth(0).locator("tbody tr").nth(1).locator("th, td")
        for column, text in enumerate(("10", "2", "5")):
            wait_for_text(row.nth(column), text)
        # A line stops at a gap: one point, then nothing.
        assert (figures.nth(0).locator("path.curve").first.get_attribute("d") or "").count("L") == 1
