"""A real conversation played live while three readers follow it, through an archive in the middle: `python -m tests.followed`.

The conversation is one of the shipped sample. It happens again, event by event, in a store whose archive takes everything that
has settled; half-way the worker settles and archives while events go on coming. Three readers follow all the while: a tail of the
library, the page in a browser, and SQL over HTTP. At the end all three have every event, once, in order, with the same text.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from playwright.sync_api import Page

from tests.browsing import PATIENCE_MS, chromium, visit
from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, served
from tests.waiting import pause, wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import load
from thermocline.query.follow import Followed
from thermocline.sample_import import load_runs, run_events
from thermocline.serve.page_text import shown
from thermocline.tiers.opening import open_tiers

PAUSE_S = 0.05
"""Between two events: a conversation of minutes in seconds."""
PATIENCE_S = PATIENCE_MS / 1000
DAY_US = 86_400_000_000
KEEP_ALL = {"rules": [{"name": "all", "keep": True}]}
SQL = "SELECT seq, event_type, content FROM events WHERE conversation_id = $name ORDER BY seq"
READ_PAGE = """() => [...document.querySelectorAll("#entries > .entry")].map(entry => {
  const texts = entry.querySelectorAll(":scope > .body > pre, :scope > .body > .fold > pre");
  return [Number(entry.dataset.seq), entry.querySelector(".type").textContent, texts.length ? texts[0].textContent : ""];
})"""
Row = tuple[int, str, str]


class Agreement(NamedTuple):
    """What was played, and what each reader has at the end."""

    events: int
    by_tail: list[Row]
    by_page: list[Row]
    by_sql: list[Row]
    cold: int
    """Events of it that are archived at the end; the others are where they came."""
    gaps: int
    """That the tail told of."""
    problems: list[str]
    """What went wrong in the browser."""


class TailReader(threading.Thread):
    """Follows with the library."""

    def __init__(self, server: Served, name: str) -> None:
        super().__init__(name="tail")
        self._tail = server.service.store.tail(name, start=1)
        self.rows: list[Row] = []
        self.gaps = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            for item in self._tail.read(timeout_s=0.2):
                if isinstance(item, Followed):
                    self.rows.append((item.event["seq"], item.event["event_type"], item.event["content"]))
                else:
                    self.gaps += 1
        self._tail.close()


class SqlReader(threading.Thread):
    """Asks again and again; every answer has to go on from the one before."""

    def __init__(self, server: Served, name: str) -> None:
        super().__init__(name="sql")
        self._server = server
        self._ask = {"sql": SQL, "params": {"name": name}}
        self.rows: list[Row] = []
        self.wrong: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with self._server.client() as client:
            while not self.ended.is_set():
                found = self.read(client)
                if found[: len(self.rows)] != self.rows:
                    self.wrong.append(f"{len(self.rows)} rows became {len(found)} others")
                self.rows = found
                pause(0.1)

    def read(self, client: httpx.Client) -> list[Row]:
        answer = client.post("/v1/query", json=self._ask).raise_for_status().json()
        return [(row["seq"], row["event_type"], row["content"]) for row in answer["rows"]]


def followed(folder: Path, *, run: int = 0) -> Agreement:
    """Play a run of the sample in a new store in `folder`; what the readers have when it has ended."""
    events = conversation(run)
    name = events[0]["conversation_id"]
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    settings = load({"data_dir": folder / "data", "redis_url": redis.url, "hot": {"shards": 4}, "sampling": KEEP_ALL}, environ={})
    try:
        with served(settings) as server, chromium() as browser, visit(browser, server.url) as seen:
            server.service.client.append_many(events[:1])
            seen.page.goto(f"{server.url}/conversation?id={quote(name, safe='')}")
            seen.page.wait_for_selector("#following.on")
            readers = TailReader(server, name), SqlReader(server, name)
            for reader in readers:
                reader.start()
            try:
                play(server, events[1:])
                cold = server.service.store.whereabouts(name).fetchall()
                archived = sum(last - first + 1 for first, last, tier in cold if tier == "cold")
                by_page = everything(readers, seen.page, len(events), archived)
            finally:
                for reader in readers:
                    reader.ended.set()
                    reader.join()
            tail, sql = readers
            return Agreement(len(events), tail.rows, by_page, sql.rows, archived, tail.gaps, [*seen.problems, *sql.wrong])
    finally:
        redis.stop()


def conversation(run: int) -> list[dict[str, Any]]:
    """The events of a run of the sample; it was long ago, so that the archive takes what has settled."""
    start_us = time.time_ns() // 1000 - 30 * DAY_US
    return list(run_events(load_runs()[run], start_us=start_us))


def play(server: Served, events: Sequence[dict[str, Any]]) -> None:
    """Append them one by one; half-way the worker settles and archives meanwhile."""

    def work() -> None:
        with open_tiers(server.service.settings) as tiers:
            Worker(tiers).once()

    worker = threading.Thread(target=work, name="worker")
    for place, event in enumerate(events):
        if place == len(events) // 2:
            worker.start()
        server.service.client.append_many([event])
        pause(PAUSE_S)
        if place == len(events) * 3 // 4:
            worker.join()
    worker.join()


def everything(readers: tuple[TailReader, SqlReader], page: Page, count: int, archived: int) -> list[Row]:
    """Wait until all have all; what the page shows then."""
    for reader in readers:
        wait_until(lambda reader=reader: len(reader.rows) >= count, PATIENCE_S, f"{reader.name} has {count} events")
    page.wait_for_function("count => document.querySelectorAll('#entries > .entry').length >= count", arg=count)
    page.wait_for_function("count => document.querySelectorAll('#entries > .entry.t-cold').length === count", arg=archived)
    return [(seq, kind, text) for seq, kind, text in page.evaluate(READ_PAGE)]


def as_shown(rows: Sequence[Row]) -> list[Row]:
    """The rows with their text as a page shows it."""
    texts = [shown(content) for _, _, content in rows]
    return [(seq, kind, (text.rest or text.head) if text else "") for (seq, kind, _), text in zip(rows, texts, strict=True)]


def disagreements(found: Agreement) -> list[str]:
    """What is not as it should be; empty when all agree."""
    checks = {
        "the tail has every event once, in order": [row[0] for row in found.by_tail] == list(range(1, found.events + 1)),
        "SQL has what the tail has": found.by_sql == found.by_tail,
        "the page shows what the tail has": found.by_page == as_shown(found.by_tail),
        "the archive came in the middle": 0 < found.cold < found.events,
        "nothing was told to be missing": found.gaps == 0,
        f"nothing went wrong: {found.problems}": not found.problems,
    }
    return [what for what, holds in checks.items() if not holds]


def main() -> int:
    run = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory(prefix="thermocline-followed-") as folder:
        begin = time.monotonic()
        found = followed(Path(folder), run=run)
    wrong = disagreements(found)
    told = f"{found.events} events, {found.cold} of them archived meanwhile, {time.monotonic() - begin:.1f} s"
    sys.stdout.write(f"{told}: {'tail, page and SQL agree' if not wrong else 'NOT: ' + '; '.join(wrong)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
