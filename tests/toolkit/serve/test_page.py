# SPDX-License-Identifier: Apache-2.0
"""The chat page in a real headless Chromium, against a real daemon with the fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.serve.browser import PROGRAM, Page, browsing
from toolkit.serve.servers import Server, serving, wait_for

NEEDS_BROWSER = pytest.mark.skipif(PROGRAM is None, reason="needs chromium")
KEY = "a-key-of-the-page-test"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Page, shared: Server) -> Iterator[Page]:
    """The chat page, ready to be written in; nothing may have been complained about, nor another server asked.

    The browser keeps its connections open for a while, so that the descriptors of the server are not counted here.
    """
    shared.wait_ready()
    browser.events.clear()
    browser.be(1100, 800)
    home = f"http://127.0.0.1:{shared.port}/"
    browser.open(home)
    browser.wait("document.querySelector('#model').textContent === 'demo'")
    yield browser
    assert browser.complaints() == []
    assert {address for address in browser.addresses() if not address.startswith(home)} == set()
    browser.open("about:blank?")


def ask(page: Page, text: str, limit: int = 20) -> None:
    page.read(f"document.querySelector('#limit').value = {limit}")
    page.type(text)
    page.press("Enter")


def wait_done(page: Page) -> None:
    page.wait("document.querySelector('#chat .assistant:last-child:not(.running)') !== null")


def focused(page: Page) -> str:
    return str(page.read("document.activeElement.id || document.activeElement.tagName"))


def test_the_files_are_served_with_a_strict_policy_and_without_a_key(server: Server) -> None:
    for path in ("/", "/page/style.css", "/page/chat.js", "/page/icon.svg"):
        reply = server.request("GET", path)
        assert reply.status == 200
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert server.request("GET", "/page/__init__.py").status == 404
    assert server.request("POST", "/", {}).status == 405


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(server: Server) -> None:
    text = server.request("GET", "/").body.decode()
    for word in ("http:", "https:", "<style", "style=", "onclick", "javascript:"):
        assert word not in text


@NEEDS_BROWSER
def test_an_answer_streams_and_tells_its_pace(page: Page) -> None:
    assert page.text("#state") == "ready"
    ask(page, "To be", 60)
    page.wait("document.querySelector('#chat .running .text')?.textContent.length > 0")
    assert page.read("document.querySelector('#stop').hidden") is False
    wait_done(page)
    assert page.text("#chat .user .text") == "To be"
    figures = page.text("#chat .assistant .figures")
    assert figures.startswith("60 tokens · ")
    assert " tokens/s · first token after " in figures
    assert figures.endswith(" ms")
    # What a screen reader is told is the whole answer, once.
    assert page.text("#told") == page.text("#chat .assistant .text")
    assert page.read("document.querySelector('#stop').hidden") is True


@NEEDS_BROWSER
def test_everything_works_without_a_mouse(page: Page) -> None:
    assert focused(page) == "prompt"
    page.read("document.querySelector('#limit').value = 400")
    page.type("first line")
    page.press("Enter", shift=True)
    page.type("second line")
    assert "\n" in page.read("document.querySelector('#prompt').value")
    page.press("Enter")
    page.wait("document.querySelector('#chat .running .text')?.textContent.length > 0")
    page.press("Escape")
    wait_done(page)
    assert page.text("#chat .assistant .figures").endswith(" · stopped")
    assert focused(page) == "prompt"
    page.read("document.querySelector('.skip').focus()")
    order = []
    for _ in range(5):
        page.press("Tab")
        order.append(focused(page))
    assert order == ["new", "SUMMARY", "chat", "prompt", "send"]
    page.read("document.querySelector('summary').focus()")
    page.press("Enter")
    page.press("Tab")
    assert focused(page) == "system"


@NEEDS_BROWSER
def test_the_stop_button_ends_the_answer_in_the_server_too(page: Page, shared: Server) -> None:
    ask(page, "To be", 400)
    page.wait("document.querySelector('#chat .running .text')?.textContent.length > 0")
    page.read("document.querySelector('#stop').click()")
    wait_done(page)
    wait_for(lambda: shared.metric("vllm:num_requests_running") == 0, shared.explain)


@NEEDS_BROWSER
def test_the_conversation_and_the_system_prompt_are_sent(page: Page) -> None:
    page.read("""
        window.bodies = [];
        const plain = window.fetch;
        window.fetch = (path, options) => {
          if (options?.body) window.bodies.push(JSON.parse(options.body));
          return plain(path, options);
        };
        document.querySelector('#system').value = 'Be brief.';
    """)
    ask(page, "one", 4)
    wait_done(page)
    ask(page, "two", 4)
    page.wait("window.bodies.length === 2")
    wait_done(page)
    messages = page.read("window.bodies[1].messages")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[2]["content"] == page.text("#chat .assistant .text")
    page.read("document.querySelector('#new').click()")
    ask(page, "three", 4)
    page.wait("window.bodies.length === 3")
    assert [message["content"] for message in page.read("window.bodies[2].messages")] == ["Be brief.", "three"]
    wait_done(page)


@NEEDS_BROWSER
def test_what_is_written_is_text_and_never_markup(page: Page) -> None:
    hostile = "<img src=x onerror=document.title='gone'><script>1</script>"
    ask(page, hostile, 4)
    wait_done(page)
    assert page.text("#chat .user .text") == hostile
    assert page.read("document.querySelectorAll('#chat img, #chat script').length") == 0
    assert page.read("document.title") == "demo · orin-run"


@NEEDS_BROWSER
def test_a_fault_in_the_middle_is_told_and_the_answer_is_not_taken_for_whole(page: Page, shared: Server) -> None:
    ask(page, "To be", 400)
    page.wait("document.querySelector('#chat .running .text')?.textContent.length > 0")
    shared.inject("cuda700@step:3")
    wait_done(page)
    assert page.read("document.querySelector('#chat .figures.error') !== null")
    shared.wait_ready()
    page.wait("document.querySelector('#state').textContent === 'ready'")


@NEEDS_BROWSER
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(page: Page, dark: bool) -> None:
    page.be(360, 640, phone=True, dark=dark)
    page.read("document.querySelector('#limit').value = 60")
    page.tap("#prompt")
    page.type("To be " + "x" * 200)
    page.tap("#send")
    page.wait("document.querySelector('#chat .assistant') !== null")
    wait_done(page)
    assert page.read("document.documentElement.scrollWidth") <= 360
    assert page.read("document.documentElement.scrollHeight") <= 640
    small = page.read("""[...document.querySelectorAll('button, textarea, summary')]
        .filter(e => e.checkVisibility()).filter(e => e.getBoundingClientRect().height < 44).map(e => e.id)""")
    assert small == []
    assert page.read("parseFloat(getComputedStyle(document.querySelector('#prompt')).fontSize)") >= 16
    assert contrast(page, "#chat .figures") >= 4.5
    assert contrast(page, "#chat .assistant .text") >= 7
    page.tap("summary")
    page.wait("document.querySelector('#settings').open")
    assert page.read("document.documentElement.scrollWidth") <= 360


def contrast(page: Page, selector: str) -> float:
    """WCAG 2.2's ratio between the colours of a text and of the page."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    text = luminance(page.read(f"getComputedStyle(document.querySelector('{selector}')).color"))
    back = luminance(page.read("getComputedStyle(document.body).backgroundColor"))
    return (max(text, back) + 0.05) / (min(text, back) + 0.05)


@NEEDS_BROWSER
def test_a_key_is_asked_for_and_kept_in_memory_only(browser: Page, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    file.chmod(0o400)
    with serving(bundle, key=KEY, api_keys=str(file)) as server:
        browser.be(1100, 800)
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.wait("document.querySelector('#state').textContent === 'needs a key'")
        assert focused(browser) == "key"
        browser.type(KEY)
        browser.press("Tab")
        browser.wait("document.querySelector('#model').textContent === 'demo'")
        browser.read("document.querySelector('#prompt').focus()")
        ask(browser, "To be", 4)
        wait_done(browser)
        assert browser.text("#chat .assistant .figures").startswith("4 tokens")
        kept = "[document.cookie, ...Object.values(localStorage), ...Object.values(sessionStorage)].join('')"
        assert browser.read(kept) == ""
        browser.open(f"http://127.0.0.1:{server.port}/?again")
        browser.wait("document.querySelector('#state').textContent === 'needs a key'")
        assert browser.read("document.querySelector('#key').value") == ""
        browser.open("about:blank?")
