"""The page in Chromium: no errors, no sideways scrolling, usable by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phikit import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_fits_and_runs_without_errors(
    browser: Any, whole_run: Path, half_run: Path, width: int, scheme: str
) -> None:
    for run in (whole_run, half_run):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda m, said=said: said.append(m.text))
        page.on("pageerror", lambda e, said=said: said.append(str(e)))
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.goto(report.write(run).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.pwned") is None
        assert said == []
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        page.close()


def test_tokens_answer_to_mouse_and_keyboard(browser: Any, whole_run: Path) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 900})
    page.goto(report.write(whole_run).as_uri())
    readout = page.locator(".solution:not([hidden]) .readout")
    tokens = page.locator(".solution:not([hidden]) .tok")
    assert "confirmed pivot" in readout.inner_text()  # the first pivot is shown from the start
    tokens.nth(0).click()
    first = readout.inner_text()
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() != first
    page.keyboard.press("n")
    assert "confirmed pivot" in readout.inner_text() and "alternatives" in readout.inner_text()
    assert tokens.locator("xpath=self::*[@aria-selected='true']").count() == 1
    before = page.locator(".solution:not([hidden]) .tokens").inner_text()
    page.get_by_label("Next solution").click()
    assert page.locator(".solution:not([hidden])").count() == 1
    assert page.locator(".solution:not([hidden]) .tokens").inner_text() != before
    page.close()
