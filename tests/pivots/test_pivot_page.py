"""The page of a search in Chromium: no errors, no sideways scrolling, usable by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phikit import pivot_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pivot_page.write(found, tmp_path_factory.mktemp("page") / "pivots.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_fits_and_runs_without_errors(
    browser: Any, page_file: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert page.locator("#list li").count() == 2
    page.close()


def test_pivots_are_found_by_key_and_by_filter(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(page_file.as_uri())
    assert "confirmed pivot" in page.locator("#readout").inner_text()
    page.locator("#tokens .tok").nth(1).click()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tokens .tok[aria-selected='true']").count() == 1
    assert "alternatives" in page.locator("#readout").inner_text()
    question = page.locator("#question").inner_text()
    page.keyboard.press("]")
    assert page.locator("#question").inner_text() != question
    page.locator("#size").select_option("0.7")
    page.locator("#direction").select_option("up")
    shown = page.locator("#list li").count()
    page.locator("#direction").select_option("down")
    assert shown + page.locator("#list li").count() <= 2
    page.locator("#size").select_option("0")
    page.locator("#direction").select_option("")
    page.locator("#find").fill("question 1")
    assert page.locator("#list li").count() == 1
    page.locator("#find").fill("nowhere")
    assert page.locator("#list li").count() == 0 and not page.locator("#solution").is_visible()
    page.close()


ODD = [
    "\n",
    "\u202eabc",
    "<script>document.title = 'run'</script>",
    "שלום",
    "\u0000",
    "\t",
    "   ",
    "😀",
]


@pytest.fixture(scope="module")
def odd_file(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search, had its first solution been 3,000 tokens that are hard to show."""
    folder = tmp_path_factory.mktemp("odd") / "found"
    shutil.copytree(found, folder)
    traces = [json.loads(line) for line in (folder / "searches.jsonl").open()]
    trace = next(t for t in traces if t["solutions"])
    solution, more = trace["solutions"][0], 3000
    trace["prompt"] = "an odd question </script>"
    (folder / "problems.parquet").unlink()
    solution["ids"] += [1] * more
    solution["probability"] += [0.5] * more
    solution["tokens"] = [ODD[i % len(ODD)] for i in range(len(solution["ids"]))]
    text = "".join(json.dumps(t) + "\n" for t in traces)
    (folder / "searches.jsonl").write_text(text)
    return pivot_page.write(folder, folder / "pivots.html")


@pytest.mark.parametrize("width", [400, 1280])
def test_a_long_solution_of_odd_tokens_can_be_walked(
    browser: Any, odd_file: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(odd_file.as_uri())
    page.locator("#find").fill("an odd question")
    tokens = page.locator("#tokens .tok")
    assert tokens.count() > 3000 and page.title() != "run"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen = [tokens.nth(i).inner_text() for i in range(8)]
    assert seen[1] == "⟨U+202E⟩abc" and seen[4] == "⟨U+0000⟩" and seen[2].startswith("<script>")

    tokens.nth(1509).click()  # what is said of a token stands beside it, however long the solution
    page.keyboard.press("ArrowRight")
    token, readout = tokens.nth(1510).bounding_box(), page.locator("#readout").bounding_box()
    assert token["y"] >= 0.0 and token["y"] + token["height"] <= readout["y"]
    assert readout["y"] + readout["height"] <= 900
    assert "␣␣␣" in page.locator("#readout").inner_text()
    page.close()
