"""Appends through a line with faults, each outcome checked: `python -m tests.faulty_appends --appends 100000 --seed 1`.

Threads append one event at a time, some by append_many, through a FaultyLine, while a worker settles and merges what comes in. If
the outcome of a call is unknown, one in three asks was_stored() and leaves when it was not; the others retry until it is known.
In the end every event that was said to be stored must be there once, under the seq it was said to have, every one that was said
not to be nowhere, and each call must have ended within its deadline.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tests.faulty_line import MIXES, FaultyLine
from tests.servers import RedisServer, binary_version, redis_binaries
from tests.waiting import wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import Backpressure, OutcomeUnknown, PartialAppend, TierUnavailable
from thermocline.event import Event, Receipt
from thermocline.ingest.append import Client
from thermocline.store import connect
from thermocline.tiers.opening import Tiers, open_tiers

CONVERSATIONS = 20
THREADS = 12
DEADLINE_S = 0.25
TIMEOUT_S = 0.1
SLACK_S = 5.0
"""Beyond the deadline: a last round trip and its connection, and threads that wait for the processor."""
MANY = 0.1
"""Share of the calls that are append_many."""
SHARDS = 4
SETTLE_S = 60


class Verdict(msgspec.Struct, kw_only=True):
    """What became of one mix of faults. `problems` is empty when every promise held."""

    mix: str
    seed: int
    redis: str
    appends: int = 0
    """Events that one call or another tried to append."""
    stored: int = 0
    not_stored: int = 0
    unknown: int = 0
    """Calls that ended in OutcomeUnknown, of those: """
    settled_by_retry: int = 0
    asked_stored: int = 0
    asked_not_stored: int = 0
    longest_call_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0
    uninvited: int = 0
    """There, though said not to be stored."""
    late_calls: int = 0
    in_warm: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = {}
    problems: list[str] = []


class Ledger:
    """What the callers were told. Thread-safe."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[str, int]] = {}
        self.refused: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0
        self.late = 0
        self._lock = threading.Lock()

    def said_stored(self, content: str, receipt: Receipt) -> None:
        with self._lock:
            self.stored[content] = (receipt.conversation_id, receipt.seq)

    def said_not(self, content: str) -> None:
        with self._lock:
            self.refused.add(content)

    def took(self, seconds: float) -> None:
        with self._lock:
            self.longest_s = max(self.longest_s, seconds)
            self.late += seconds > DEADLINE_S + SLACK_S

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


class Caller:
    """One thread's appends."""

    def __init__(self, client: Client, ledger: Ledger, name: str, count: int, seed: int) -> None:
        self._client, self._ledger = client, ledger
        self._name, self._count = name, count
        self._dice = random.Random(f"{seed}:{name}")

    def run(self) -> None:
        made = 0
        while made < self._count:
            size = self._dice.randint(2, 20) if self._dice.random() < MANY else 1
            events = [self._event(made + index) for index in range(min(size, self._count - made))]
            made += len(events)
            self._append(events)

    def _event(self, number: int) -> Event:
        conversation = f"c{self._dice.randrange(CONVERSATIONS)}"
        return Event(conversation_id=conversation, event_type="t", content=f"{self._name}:{number}")

    def _append(self, events: list[Event]) -> None:
        begun_s = time.monotonic()
        try:
            if len(events) == 1:
                [event] = events
                receipts: list[Receipt | None] = [self._client.append(event.conversation_id, "t", event.content)]
            else:
                receipts = list(self._client.append_many(events))
            cause = None
        except PartialAppend as exc:
            receipts, cause = exc.receipts, exc.cause
        except (OutcomeUnknown, TierUnavailable, Backpressure) as exc:
            receipts, cause = [None] * len(events), exc
        self._ledger.took(time.monotonic() - begun_s)
        rest = self._note(events, receipts)
        if isinstance(cause, OutcomeUnknown):
            self._ledger.count("unknown")
            self._settle(rest, cause)
        else:
            self._give_up(rest)

    def _note(self, events: list[Event], receipts: list[Receipt | None]) -> list[Event]:
        """The events without a receipt."""
        for event, receipt in zip(events, receipts, strict=True):
            if receipt is not None:
                self._ledger.said_stored(str(event.content), receipt)
        return [event for event, receipt in zip(events, receipts, strict=True) if receipt is None]

    def _settle(self, rest: list[Event], unknown: OutcomeUnknown) -> None:
        if len(rest) == 1 and self._dice.random() < 1 / 3:
            stored = self._ask(unknown)
            self._ledger.count("asked_stored" if stored else "asked_not_stored")
            if not stored:
                self._give_up(rest)
                return
        while rest:
            try:
                rest = self._note(rest, list(unknown.retry()))
                self._ledger.count("settled_by_retry")
            except PartialAppend as exc:
                rest = self._note(rest, exc.receipts)
                if not isinstance(exc.cause, OutcomeUnknown):
                    self._ledger.count("settled_by_retry")
                    self._give_up(rest)
                    return
                unknown = exc.cause
            except OutcomeUnknown as exc:
                unknown = exc
            except (TierUnavailable, Backpressure):
                self._ledger.count("settled_by_retry")
                self._give_up(rest)
                return

    def _ask(self, unknown: OutcomeUnknown) -> bool:
        while True:
            try:
                return unknown.was_stored()
            except OutcomeUnknown:
                continue

    def _give_up(self, events: list[Event]) -> None:
        for event in events:
            self._ledger.said_not(str(event.content))


def run_appends(folder: Path, server: RedisServer, mix: str, *, appends: int, seed: int) -> Verdict:
    """Append so many events with these faults, then look where they are."""
    begun_s = time.monotonic()
    ledger = Ledger()
    direct = _settings(folder, server.url, 5)
    socket = Path(server.socket).with_name(f"line-{seed}.sock")  # a short path
    with open_tiers(direct) as tiers, FaultyLine(server.socket, socket, MIXES[mix], seed=seed) as line:
        worker, over = Worker(tiers), threading.Event()
        settling = threading.Thread(target=_settle, args=(worker, over))
        settling.start()
        try:
            _call(_settings(folder, server.url.replace(server.socket, str(socket)), TIMEOUT_S), ledger, appends, seed)
        finally:
            over.set()
            settling.join(SETTLE_S)
        faults = {kind: count for kind, count in sorted(line.counts.items()) if count}
    socket.unlink(missing_ok=True)
    verdict = Verdict(mix=mix, seed=seed, redis=".".join(map(str, binary_version(server.binary))), faults=faults, **ledger.counts)
    verdict.appends, verdict.stored, verdict.not_stored = appends, len(ledger.stored), len(ledger.refused)
    verdict.longest_call_s, verdict.late_calls = round(ledger.longest_s, 2), ledger.late
    _judge(verdict, ledger, direct)
    verdict.seconds = round(time.monotonic() - begun_s, 1)
    return verdict


def _settings(folder: Path, url: str, timeout_s: float) -> Settings:
    return load(
        {
            "data_dir": folder / "data",
            "redis_url": url,
            "hot": {"shards": SHARDS, "timeout_s": timeout_s, "connect_timeout_s": 0.2, "durable_lag_s": 0, "log_grace_s": 0.2},
            "warm": {"settle_events": 200, "settle_after_s": 0.2, "settle_after_events": 1, "fan_in": 3, "day_rows_min": 1000},
            "ingest": {"deadline_s": DEADLINE_S},
        },
        environ={},
    )


def _settle(worker: Worker, over: threading.Event) -> None:
    """Settle, merge and trim what comes in until it is over; then all of it but the last tenth of a second's."""
    while not over.wait(0.3):
        worker.once()
    worker.once()


def _call(settings: Settings, ledger: Ledger, appends: int, seed: int) -> None:
    """All the appends, from some threads that share a client."""
    with _opened(settings) as tiers, Client(settings, tiers=tiers) as client:
        sizes = [appends // THREADS + (number < appends % THREADS) for number in range(THREADS)]
        callers = [Caller(client, ledger, f"t{number}", size, seed) for number, size in enumerate(sizes)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _opened(settings: Settings) -> Tiers:
    """Tiers that were opened through the line, which is not what is tried here."""
    found: list[Tiers] = []

    def opens() -> bool:
        try:
            found.append(open_tiers(settings))
        except TierUnavailable:
            return False
        return True

    wait_until(opens, 60, "the store opens through the line")
    return found[0]


def _judge(verdict: Verdict, ledger: Ledger, settings: Settings) -> None:
    with connect(settings) as store:
        rows: list[Any] = store.sql("SELECT content, conversation_id, seq FROM events").fetchall()
        verification = store.verify()
        verdict.in_warm = sum(segment.rows for segment in store.tiers.ledger.view().segments)
    found = {content: (conversation, seq) for content, conversation, seq in rows}
    verdict.doubled = len(rows) - len(found)
    verdict.lost = len(ledger.stored.keys() - found.keys())
    verdict.misplaced = sum(1 for content, place in ledger.stored.items() if found.get(content, place) != place)
    verdict.uninvited = len(found.keys() - ledger.stored.keys())
    names = ("lost", "doubled", "misplaced", "uninvited", "late_calls")
    verdict.problems = [f"{name} is {getattr(verdict, name)}" for name in names if getattr(verdict, name)]
    if verdict.stored + verdict.not_stored != verdict.appends:
        verdict.problems.append(f"{verdict.appends - verdict.stored - verdict.not_stored} events have no outcome")
    verdict.problems += verification.problems


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faulty_appends", description="Append through faults; check every event."
    )
    parser.add_argument("--redis", help="redis-server binary", default=str(redis_binaries()[-1]))
    parser.add_argument("--appends", type=int, default=100_000, help="events for each mix of faults")
    parser.add_argument(
        "--mix", choices=list(MIXES), action="append", help="may be given again; default: all, one after the other"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = 0
    for mix in options.mix or list(MIXES):
        folder = Path(tempfile.mkdtemp(prefix="thermocline-faults-"))
        server = RedisServer(options.redis, folder / "redis", options={"appendfsync": "always"})
        server.start()
        try:
            verdict = run_appends(folder, server, mix, appends=options.appends, seed=options.seed)
        finally:
            server.stop()
        print(msgspec.json.encode(verdict).decode(), flush=True)  # noqa: T201
        failed += bool(verdict.problems)
        if not verdict.problems:
            shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
