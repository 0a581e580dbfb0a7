"""A headless Chromium for the tests of the page; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ropewalk.report.kit.page import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing of its own goes to the network either, so that a request seen in a test is the page's.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; skips the test that asks for it where playwright or Chromium isn't installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install ropewalk[browser]")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """An open page, and what has happened in it that shouldn't."""

    tab: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression or function."""
        return self.tab.evaluate(script, argument)

    def width(self) -> int:
        """How wide the whole page is, to be scrolled or not, in pixels."""
        return int(self.evaluate("document.documentElement.scrollWidth"))


@contextmanager
def opened(browser: Any, page: Page, path: Path, width: int = 1200, **options: Any) -> Iterator[Seen]:
    """The page in a tab of its own, as `visited` says."""
    page.write(path)
    with visited(browser, path, width, **options) as seen:
        yield seen


@contextmanager
def visited(browser: Any, path: Path, width: int = 1200, **options: Any) -> Iterator[Seen]:
    """A written page in a tab of its own; on leaving, nothing may have gone wrong and no request have been made."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    seen = Seen(context.new_page())
    seen.tab.on("console", lambda m: seen.messages.append(f"{m.type}: {m.text}"))
    seen.tab.on("pageerror", lambda error: seen.messages.append(str(error)))
    seen.tab.on("dialog", lambda dialog: (seen.messages.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    seen.tab.on("request", lambda request: seen.requests.append(request.url))
    seen.tab.goto(path.as_uri())
    yield seen
    context.close()
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def tab_to(seen: Seen, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(40):
        seen.tab.keyboard.press("Tab")
        if seen.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"Tab never comes to {selector}")


def wait_for_text(element: Any, text: str) -> None:
    """An element's text is this, soon: Chromium handles input when it comes to it."""
    from playwright.sync_api import expect

    expect(element).to_have_text(text)
