"""The pages that `sweep`, `extend` and `train` end with, from outcomes made by hand, in a real browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.browser.chromium import tab_to, visited
from tests.report.outcomes import outcome
from tests.report.test_extend_page import statistics
from tests.report.test_sweep import made
from tests.report.test_training_page import comparison

from ropewalk.evaluation.calibration import FILE
from ropewalk.report import extend_page, sweep
from ropewalk.report import training as training_page

HOSTILE = "</script><script>alert(1)</script>"
LONG = "a-name-" + "x" * 120


def swept(folder: Path) -> None:
    """Three plans, of which one's maps are folded; names and answers are hostile."""
    found, cells = made(folder)
    sweep.write_report(found, cells, f"ropewalk sweep {LONG} '{HOSTILE}'", folder)


def extended(folder: Path) -> None:
    found = outcome(plain=2.2, rule=0.95, dope=0.60)
    for name, answers in found.final.items():
        found.final[name] = [dataclasses.replace(a, key=f"{a.key}{LONG}", generated=HOSTILE) for a in answers]
    statistics().save(folder / FILE)
    (folder / "results.jsonl").write_text("{}\n")
    model = {"name": f"{LONG}{HOSTILE}", "fingerprint": "ab" * 32}
    extend_page.write_report(found, f"ropewalk extend '{HOSTILE}'", model, folder)


def trained(folder: Path) -> None:
    found = comparison(folder, **{HOSTILE: [0.5, 0.25], "pope": [0.9, None]})
    training_page.write_report(found, f"ropewalk train {LONG} '{HOSTILE}'")


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize(
    ("build", "reached"),
    [
        (swept, [".maps td", "summary", "details .maps td", "a[download='cells.jsonl']"]),
        (extended, [".maps td", "summary", ".heads td", "a[download='results.jsonl']"]),
        (trained, [".copy", "a[download='summary.json']"]),
    ],
    ids=["sweep", "extend", "train"],
)
def test_the_pages_of_commands_are_quiet_narrow_and_reached_by_keyboard(
    build: Callable[[Path], None],
    reached: list[str],
    width: int,
    browser: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ropewalk.report.sweep.MOST_MAPS", 2)
    build(tmp_path)
    with visited(browser, tmp_path / "report.html", width) as seen:
        assert seen.width() <= width
        for selector in reached:
            tab_to(seen, selector)
            if selector == "summary":
                seen.tab.keyboard.press("Enter")
                assert seen.tab.locator("details[open]").count() == 1
            elif selector.endswith("td"):
                before = seen.evaluate("document.activeElement.cellIndex")
                seen.tab.keyboard.press("ArrowRight")
                assert seen.evaluate("document.activeElement.cellIndex") == before + 1
        for head in seen.tab.locator(".heads td").all()[:1]:
            head.click()
            assert seen.tab.locator(".opened .chart").count() > 0
        assert seen.width() <= width
        # Whatever ran would have been heard as a dialog when the page is left.
        assert HOSTILE in seen.evaluate("document.body.textContent")
        assert seen.evaluate("document.querySelectorAll('script:not([type])').length") == 1
        images = "[...document.querySelectorAll('img')].map((image) => image.naturalWidth > 0)"
        assert all(seen.evaluate(images))
