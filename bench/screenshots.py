"""The pictures of the page in the docs, made anew: `python -m bench.screenshots`, into docs/images/.

The shipped conversations go through all tiers in a folder that is removed, as in the demo, with tokens and costs as their texts
would have, at 4 characters a token and gpt-4o's list price; the last conversation happens while the pictures are made.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page

from tests.browsing import chromium, visit
from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, served
from tests.waiting import pause
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.ingest.append import Client
from thermocline.sample_import import events_of, load_runs
from thermocline.tiers.opening import open_tiers

FOLDER = Path(__file__).parents[1] / "docs" / "images"
CHARS_PER_TOKEN = 4
DOLLARS_PER_TOKEN = (2.5e-6, 10e-6)
"""Read and written."""
LIVE = "airline-live"
SQL = """SELECT date_trunc('day', timestamp) AS day, sum(1 / sample_rate) AS events,
       sum(1 / sample_rate) FILTER (event_type = 'tool.call') AS tool_calls
FROM events GROUP BY day ORDER BY day"""
VIEWS = {
    "overview": ("/", "light", 1400),
    "timeline": (f"/conversation?id={LIVE}", "light", 1400),
    "timeline-sampled": ("", "dark", 1400),
    "sql": (f"/sql?q={quote(SQL)}", "light", 1400),
    "overview-small": ("/", "dark", 400),
}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thermocline-pictures-") as scratch:
        redis = RedisServer(redis_binaries()[-1], Path(scratch) / "redis")
        redis.start()
        try:
            settings = load({"data_dir": Path(scratch) / "data", "redis_url": redis.url, "namespace": "airline"}, environ={})
            events = list(priced(events_of(load_runs(), end_us=time.time_ns() // 1000)))
            fill(settings, events)
            with served(settings) as server:
                photograph(server, settings, events[0]["conversation_id"])
        finally:
            redis.stop()
    for path in sorted(FOLDER.glob("*.png")):
        print(f"{path.name}  {path.stat().st_size / 1024:.0f} KiB")
    return 0


def priced(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events, those of the model with what it read and wrote."""
    read = 0
    for event in events:
        tokens = len(event.get("content") or "") // CHARS_PER_TOKEN
        read = tokens if event["event_type"] == "message.system" else read + tokens
        if event["event_type"] == "message.assistant":
            cost = read * DOLLARS_PER_TOKEN[0] + tokens * DOLLARS_PER_TOKEN[1]
            yield {**event, "input_tokens": read, "output_tokens": tokens, "cost_usd": cost}
        else:
            yield event


def fill(settings: Settings, events: list[dict[str, Any]]) -> None:
    """Part by part, the worker working between: segments, merges, an archive."""
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        worker = Worker(tiers)
        for first, last in pairwise((0, len(events) // 2, len(events) - 70)):
            client.append_many(events[first:last])
            worker.once()
        client.append_many(events[-70:])


def photograph(server: Served, settings: Settings, archived: str) -> None:
    ended = threading.Event()
    threads = [threading.Thread(target=work, args=(settings, ended)), threading.Thread(target=happen, args=(server, ended))]
    for thread in threads:
        thread.start()
    try:
        with chromium() as browser:
            for name, (address, scheme, width) in VIEWS.items():
                size = {"width": width, "height": 800 if width > 500 else 850}
                with visit(browser, server.url, viewport=size, color_scheme=scheme, reduced_motion="reduce") as seen:
                    seen.page.goto(server.url + (address or f"/conversation?id={archived}"))
                    settled(seen.page)
                    if LIVE in address:
                        seen.page.evaluate("scrollTo(0, document.body.scrollHeight)")
                        pause(4)
                        seen.page.evaluate("scrollTo(0, document.body.scrollHeight)")
                    seen.page.screenshot(path=FOLDER / f"{name}.png")
                    print(name, seen.problems or "")
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def settled(page: Page) -> None:
    """Let the page show what comes by itself, and the answer of a query."""
    if page.locator("#console").count():
        page.press("#sql", "Control+Enter")
        page.wait_for_selector("#result-chart canvas")
    pause(6)


def work(settings: Settings, ended: threading.Event) -> None:
    """A worker, so that its jobs can be seen."""
    with open_tiers(settings) as tiers:
        worker = Worker(tiers)
        worker.start()
        ended.wait()
        worker.stop(within_s=60)


def happen(server: Served, ended: threading.Event) -> None:
    """A conversation that goes on for as long as the pictures take."""
    run = load_runs()[3]
    while not ended.is_set():
        for event in priced(events_of([run], end_us=time.time_ns() // 1000, days=1)):
            if ended.is_set():
                return
            server.service.client.append_many([{**event, "conversation_id": LIVE, "timestamp": time.time_ns() // 1000}])
            pause(0.8)


if __name__ == "__main__":
    raise SystemExit(main())
