"""The chat page in a browser: keyboard, streaming, stopping, settings, narrow and wide screens."""

import json
import re
import shutil

import httpx
import pytest
from serve_fixtures import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def expect(locator):
    """Waits for what is said of it; asks the page nothing that its content policy forbids."""
    from playwright import sync_api

    sync_api.expect.set_options(timeout=60_000)
    return sync_api.expect(locator)


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 400, "height": 700})
    page = context.new_page()
    page.set_default_timeout(60_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert not problems


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def answered(page, count):
    expect(page.locator("article.assistant")).to_have_count(count)
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")


def test_a_conversation_by_keyboard_alone(server, page):
    page.goto(server)
    expect(page.locator("#model option")).to_have_count(3)
    assert page.evaluate("document.activeElement.id") == "ask" and fits(page)
    page.focus("#fold")
    page.keyboard.press("Enter")  # opens the settings and goes there
    assert page.evaluate("document.activeElement.id") == "temperature"
    page.keyboard.press("Tab")
    page.keyboard.type("12")
    page.fill("#system", "the cat")
    assert fits(page)
    page.focus("#fold")
    page.keyboard.press("Enter")
    page.focus("#ask")
    page.keyboard.type("<b>the mat</b>")
    page.keyboard.press("Shift+Enter")
    page.keyboard.insert_text("```\nlong " + "code " * 40)
    page.keyboard.press("Enter")
    answered(page, 1)
    assert page.inner_text("article.user .text").startswith("<b>the mat</b>\n")
    assert page.locator("article.user pre").count() == 1 and fits(page)
    note = page.inner_text("article.assistant .who")
    assert re.search(r"\d+ tokens, \d+\.\d a second", note), note
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.type("and?")
    page.keyboard.press("Enter")
    answered(page, 2)
    assert page.evaluate("messages.map(m => m.role).join()").startswith("user,assistant,user")
    page.click("#fresh")
    assert page.locator("article").count() == 0 and page.is_visible("#empty")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert fits(page)


def test_what_the_page_may_do(server):
    answer = httpx.get(server)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert not re.search(r"(src|href)=|https?://|@import|url\(", answer.text)


def test_escape_stops_and_errors_are_told(tiny, tmp_path, page):
    keys = tmp_path / "keys.txt"
    keys.write_text("first\n")
    with running(f"tiny={tiny}", "--cache", "0.02", "--api-key-file", str(keys)) as (url, _):
        page.goto(url)
        page.wait_for_selector("#settings:not([hidden])")  # it asks for the key
        assert "API key" in page.inner_text("#empty")
        page.fill("#key", "first")
        page.press("#key", "Tab")
        expect(page.locator("#model option")).to_have_count(1)
        # an answer that does not end by itself, seen half-way
        page.route("**/v1/chat/completions", lambda route: None)
        page.fill("#ask", "the cat")
        page.press("#ask", "Enter")
        page.wait_for_selector("#stop:not([hidden])")
        page.keyboard.press("Escape")
        answered(page, 1)
        assert "stopped" in page.inner_text("article.assistant .who")
        page.unroute("**/v1/chat/completions")
        page.fill("#tokens", "100000000000")
        page.fill("#ask", "the cat")
        page.press("#ask", "Enter")
        answered(page, 2)
        assert "max_tokens" in page.locator("article.assistant .who .wrong").inner_text()
        assert page.input_value("#ask") == "the cat"


def test_an_answer_without_a_word_is_one(server, page):
    """Or the next question would stand beside the one before."""
    said = ({"delta": {"role": "assistant"}}, {"delta": {}, "finish_reason": "stop"})
    lines = "".join(f"data: {json.dumps({'choices': [{'index': 0, **s}]})}\n\n" for s in said)
    asked = []

    def reply(route):
        asked.append([m["role"] for m in route.request.post_data_json["messages"]])
        route.fulfill(content_type="text/event-stream", body=f"{lines}data: [DONE]\n\n")

    page.route("**/v1/chat/completions", reply)
    page.goto(server)
    expect(page.locator("#model option")).to_have_count(3)
    for count in (1, 2):
        page.fill("#ask", "well?")
        page.keyboard.press("Enter")
        answered(page, count)
    assert asked == [["user"], ["user", "assistant", "user"]]
