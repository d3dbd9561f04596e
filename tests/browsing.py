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
FAINT = """() => {
  const light = rgb => {
    const [r, g, b] = rgb.map(value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parsed = text => {
    const found = text.match(/[\\d.]+/g).map(Number), scale = text.startsWith("color(") ? 255 : 1;
    return [found[0] * scale, found[1] * scale, found[2] * scale, found[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map(place => top[place] * top[3] + under[place] * (1 - top[3]));
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(parsed(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const back = behind(element), ink = over(parsed(getComputedStyle(element).color), back);
    const [low, high] = [light(ink), light(back)].sort((one, other) => one - other);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(text.slice(0, 40));
  }
  return faint;
}"""
"""The visible texts whose contrast with what is behind them is less than 4.5 to 1 (WCAG 2, AA)."""


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
