"""Chromium for tests of the page: one browser, and pages that note everything that went wrong in them.

with chromium() as browser, visit(browser, server.url) as seen:
    seen.page.goto(server.url)
seen.problems      # errors of the console and of scripts, requests that failed or left the host
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

PATIENCE_MS = 120_000
"""How long a page may take to show what it will: a test that waits less would test the machine."""
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
INK = """canvas => {
  const {width, height} = canvas, drawn = new Set();
  const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
  for (let place = 0; place < data.length; place += 4 * 7)
    if (data[place + 3] > 0) drawn.add(data.slice(place, place + 3).join());
  return [...drawn].length;
}"""
"""How many colours a canvas shows."""


class Seen(NamedTuple):
    """A page, its context, and what went wrong in it."""

    page: Page
    context: BrowserContext
    problems: list[str]
    answers: list[tuple[int, str]]
    """(status, address) of everything that was loaded."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or one from PATH, without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "the tests of the page need chromium: apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, url: str, **how: Any) -> Iterator[Seen]:
    """A new window on the server at `url`, with no memory of others."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **how})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    seen = Seen(page, context, [], [])
    host = urlsplit(url).netloc

    def left(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("data", "about") and parts.netloc != host:
            seen.problems.append(f"asked {address}")

    page.on("console", lambda said: seen.problems.append(f"console: {said.text}") if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.problems.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (seen.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: left(request.url))
    page.on("response", lambda answer: seen.answers.append((answer.status, answer.url)))
    try:
        yield seen
    finally:
        context.close()
