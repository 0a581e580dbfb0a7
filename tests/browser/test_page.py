"""The page in a real browser: quiet, safe, narrow, dark, in print and quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.browser.chromium import opened, wait_for_text
from tests.report.pages import HOSTILE, page

from ropewalk.report.kit.page import Download, Page, Section


def contrast(seen: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with the ground that it stands on."""
    light, dark = sorted(
        seen.evaluate(
            """(selector) => {
            const luminance = (colour) => {
                const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
                const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
                return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
            };
            const element = document.querySelector(selector);
            let ground = element;
            while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(luminance);
        }""",
            selector,
        ),
        reverse=True,
    )
    return float((light + 0.05) / (dark + 0.05))


def use_everything(seen: Any) -> None:
    """Open a head and all that is folded, choose another score, copy, and hover."""
    tab = seen.tab
    tab.locator(".heads td").nth(5).click()
    for summary in tab.locator("summary").all():
        summary.click()
    tab.locator("select").select_option(index=1)
    tab.locator(".copy").click()
    tab.locator(".maps td").first.hover()
    tab.locator(".chart").first.hover()


def test_nothing_is_said_on_the_console_and_nothing_asked_for(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        use_everything(seen)


def test_the_policy_stops_whatever_would_leave_the_page(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html") as seen:
        stopped = seen.evaluate(
            """async () => {
            const stopped = [];
            document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
            await fetch("http://localhost:9/").catch(() => {});
            const image = new Image();
            image.src = "http://localhost:9/";
            document.body.append(image);
            const script = document.createElement("script");
            script.textContent = "window.hasRun = true";
            document.body.append(script);
            await new Promise((done) => setTimeout(done, 100));
            return [window.hasRun ?? false, ...stopped.sort()];
        }"""
        )
        assert stopped == [False, "connect-src", "img-src", "script-src-elem"]
        assert all("Content Security Policy" in message for message in seen.messages)
        # The browser tells of what it has stopped; nothing of it has left.
        seen.messages.clear()
        del seen.requests[1:]


def test_hostile_text_is_shown_and_never_run(browser: Any, tmp_path: Path) -> None:
    text = " ".join(HOSTILE)
    with opened(browser, page(text), tmp_path / "report.html") as seen:
        use_everything(seen)
        shown = seen.evaluate("document.body.textContent")
        # The alert would have been heard as a dialog; texts that only the script puts in are there unharmed too.
        assert shown.count(text) > 25
        assert seen.evaluate("document.title") == f"A model{text}"
        assert seen.evaluate("document.querySelector('.opened').textContent").count(text) >= 5
        assert seen.evaluate("document.querySelectorAll('script:not([type])').length") == 1


@pytest.mark.parametrize("heads", [9, 32])
def test_a_narrow_screen_never_scrolls_sideways(browser: Any, tmp_path: Path, heads: int) -> None:
    """Nor with words that are longer than the screen is wide."""
    with opened(browser, page("-" + "x" * 120, heads=heads), tmp_path / "report.html", width=360) as seen:
        assert seen.width() == 360
        use_everything(seen)
        assert seen.tab.locator(".opened .chart").count() == 4
        assert seen.width() == 360
        boxes = seen.evaluate("[...document.querySelectorAll('.scroll')].map((b) => [b.clientWidth, b.scrollWidth])")
        assert max(shown for shown, _ in boxes) <= 360 and any(whole > shown for shown, whole in boxes)


def test_a_box_that_is_cut_can_be_scrolled_with_the_keyboard(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html", width=360) as seen:
        seen.tab.locator("summary", has_text="Answers").click()
        box = seen.tab.locator("details .scroll")
        seen.tab.wait_for_selector("details .scroll[tabindex='0']")
        box.focus()
        seen.tab.keyboard.press("ArrowRight")
        # Scrolling is animated. The page's policy forbids to wait by a function, which Chromium would evaluate there.
        until = time.monotonic() + 10
        while box.evaluate("box => box.scrollLeft") == 0 and time.monotonic() < until:
            seen.tab.wait_for_timeout(20)
        assert box.evaluate("box => box.scrollLeft") > 0
        assert box.get_attribute("role") == "region" and box.get_attribute("aria-label")
        seen.tab.set_viewport_size({"width": 3000, "height": 800})
        seen.tab.wait_for_selector("section:first-child .scroll:not([tabindex])")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Any, tmp_path: Path, scheme: str) -> None:
    with opened(browser, page(), tmp_path / "report.html", color_scheme=scheme) as seen:
        ground = seen.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        seen.tab.locator(".heads td").nth(5).click()
        for selector in ("h1", ".verdict", "nav a", ".caption", "td", ".map th", "dt", ".copy", "summary", "select"):
            assert contrast(seen, selector) >= 4.5, selector
        assert contrast(seen, ".opened h4") >= 4.5 and contrast(seen, ".opened .note") >= 4.5


def test_in_print_nothing_is_cut_off_and_colours_stay(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html", color_scheme="dark") as seen:
        seen.tab.emulate_media(media="print")
        assert not seen.tab.locator("nav").is_visible() and not seen.tab.locator(".copy").is_visible()
        style = "getComputedStyle(document.querySelector('%s')).%s"
        assert seen.evaluate(style % (".scroll", "overflowX")) == "visible"
        assert seen.evaluate(style % (".map td", "printColorAdjust")) == "exact"
        assert seen.evaluate(style % ("body", "backgroundColor")) == "rgb(255, 255, 255)"
        assert seen.tab.pdf()[:5] == b"%PDF-"


def test_motion_only_for_those_who_want_it(browser: Any, tmp_path: Path) -> None:
    for wish, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        with opened(browser, page(), tmp_path / "report.html", reduced_motion=wish) as seen:
            assert seen.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour
            moving = (
                "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s')"
            )
            assert seen.evaluate(f"{moving}.length") == 0 and seen.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_command_is_copied_also_from_a_file(browser: Any, tmp_path: Path, has_clipboard: bool) -> None:
    with opened(browser, page(" & <b>"), tmp_path / "report.html") as seen:
        if not has_clipboard:
            seen.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        seen.tab.locator(".copy").click()
        seen.tab.wait_for_selector(".copy:has-text('Copied')")
        seen.evaluate("document.body.append(document.createElement('textarea'))")
        seen.tab.locator("textarea").focus()
        seen.tab.keyboard.press("Control+V")
        wanted = "ropewalk extend 'a model & <b>' --length 16384"
        assert seen.evaluate("document.querySelector('textarea').value") == wanted
        seen.tab.wait_for_selector(".copy:has-text('Copy')", timeout=5000)


@pytest.mark.parametrize("size", [10, 6_000_000])
def test_a_download_is_the_file(browser: Any, tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"\x00\xff<>"
    made = Page("t", "v", [Section("Raw data"), Download("r s.bin", content, "application/octet-stream")])
    with opened(browser, made, tmp_path / "report.html") as seen:
        with seen.tab.expect_download() as download:
            seen.tab.locator("a[download]").click()
        assert download.value.suggested_filename == "r s.bin"
        assert Path(download.value.path()).read_bytes() == content


def test_without_scripts_all_tables_and_numbers_are_there(browser: Any, tmp_path: Path) -> None:
    with opened(browser, page(), tmp_path / "report.html", java_script_enabled=False) as seen:
        wait_for_text(seen.tab.locator(".heads td").nth(7), "7.000")
        assert not seen.tab.locator(".copy").is_visible() and seen.tab.locator("select").is_disabled()


def test_a_thousand_heads_open_within_a_second(browser: Any, tmp_path: Path) -> None:
    """32 x 32 heads with four charts each. Processor time is counted, so that a busy machine doesn't matter."""
    with opened(browser, page(layers=32, heads=32, n=128), tmp_path / "report.html") as seen:
        session = seen.tab.context.new_cdp_session(seen.tab)
        session.send("Performance.enable")
        seconds = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
        print(f"{seconds['ProcessTime']:.2f} s of processor time")  # pytest -rP shows it
        assert seconds["ProcessTime"] < 1.0
        assert seen.tab.locator(".heads td[tabindex='0']").count() == 1
        began = seen.evaluate("performance.now()")
        seen.tab.locator(".heads td").nth(1000).click()
        assert seen.tab.locator(".opened .chart").count() == 4 and seen.evaluate("performance.now()") - began < 5000
