"""What each process of a chaos run does: `python -m tests.chaos.roles ROLE FOLDER NUMBER SEED RATE`.

Every role ends when FOLDER/stop exists and writes FOLDER/<role>-<number>.ndjson, one object per line, flushed at once. RATE is
how many events or queries a second it does at most; 0: as many as PACE_S lets it, and as it can. The worker is forked by
tests/forks.py, with everything imported that it uses.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tests.waiting import Pace, pause, wait_until
from thermocline.archiver.worker import Worker
from thermocline.config import Settings, load
from thermocline.errors import Backpressure, OutcomeUnknown, PartialAppend, TierUnavailable
from thermocline.event import Event, Receipt
from thermocline.ingest.append import Client
from thermocline.store import Store, connect
from thermocline.tiers.opening import Tiers, open_tiers

CONVERSATIONS = 300
BATCH_EVENTS_MAX = 200
PACE_S = 0.4
"""Longest pause of a producer between two batches: some 500 events a second each, which two cores can also read and settle."""
CONNECT_WAIT_S = 300
NOT_NOW = 3
"""Exit code of a worker that could not open the store, and may be started again."""
LOAD_NICE = 10
"""Producers and readers give way to the worker: in life they run on other machines, here they share two cores with it.
All are in the runner's session: Linux weighs sessions, not processes, where autogroups are on."""


class Journal:
    """One role's record of what it saw; survives its kill because each line is flushed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file: TextIO = (folder / f"{name}.ndjson").open("a", buffering=1)

    def write(self, **fields: Any) -> None:
        self._file.write(json.dumps(fields) + "\n")


def settings_of(folder: Path) -> Settings:
    return load(file=folder / "thermocline.toml", environ={})


def running(folder: Path) -> Iterator[int]:
    """0, 1, 2 … until the runner says stop."""
    turn = 0
    while not (folder / "stop").exists():
        yield turn
        turn += 1


def produce(folder: Path, number: int, seed: int, rate: float) -> None:
    """Append batches; journal every receipt, and every event whose append was refused for certain."""
    dice = random.Random(seed * 1000 + number)
    journal = Journal(folder, f"producer-{number}")
    client = Client(settings_of(folder))
    pace = Pace(rate)
    made = 0
    for _ in running(folder):
        events = []
        for _ in range(dice.randint(1, BATCH_EVENTS_MAX)):
            made += 1
            # one conversation in three is shared by all producers
            owner = "all" if dice.random() < 0.33 else str(number)
            conversation = f"chat-{owner}-{dice.randrange(CONVERSATIONS // 3)}"
            events.append(Event(conversation_id=conversation, event_type="chaos.event", content=f"{number}:{made}"))
        for receipt, event in _append_all(client, events):
            journal.write(content=event.content, conversation=receipt.conversation_id, seq=receipt.seq)
        if rate:
            pace.wait(len(events))
        else:
            pause(PACE_S * dice.random())
    client.close()
    journal.write(done=True, made=made)


def _append_all(client: Any, events: list[Event]) -> Iterator[tuple[Receipt, Event]]:
    """Append until every event has a receipt, in the three outcomes' own ways."""
    pending, attempt = events, client.append_many
    while pending:
        try:
            yield from zip(attempt(pending), pending, strict=True)
            return
        except PartialAppend as partial:
            for receipt, event in zip(partial.receipts, pending, strict=True):
                if receipt is not None:
                    yield receipt, event
            pending, cause = list(partial.rest), partial.cause
        except (OutcomeUnknown, Backpressure, TierUnavailable) as exc:
            cause = exc
        attempt = _retry_of(cause) if isinstance(cause, OutcomeUnknown) else client.append_many
        pause(min(cause.retry_after_s, 0.2) if isinstance(cause, Backpressure) else 0.05)


def _retry_of(unknown: OutcomeUnknown) -> Callable[[list[Event]], list[Receipt]]:
    """An attempt that finds out what became of the one before, for the very same events."""
    return lambda _: unknown.retry()


def read(folder: Path, number: int, seed: int, rate: float) -> None:
    """Count all events over and over, each count bracketed by Redis' own counter; journal what is not within its bracket."""
    dice = random.Random(seed * 2000 + number)
    journal = Journal(folder, f"reader-{number}")
    store = _connected(folder)
    journal.write(opened=time.time())
    progress = folder / f"reader-{number}.count"
    pace = Pace(rate)
    queries = unavailable = 0
    for turn in running(folder):
        pace.wait(1)
        try:
            before = _counter(store)
            if dice.random() < 0.1:
                rows = store.sql("SELECT count(*), count(DISTINCT (conversation_id, seq)) FROM events").fetchall()
                counted, distinct = rows[0]
            elif dice.random() < 0.1:
                groups = store.sql("SELECT conversation_id, count(*) AS n FROM events GROUP BY conversation_id").fetchall()
                counted = sum(n for _, n in groups)
                distinct = counted if len({name for name, _ in groups}) == len(groups) else -1
            else:
                counted = distinct = store.sql("SELECT count(*) FROM events").fetchall()[0][0]
            after = _counter(store)
        except TierUnavailable as exc:
            unavailable += 1
            journal.write(unavailable=str(exc)[:200], at=time.time())
            pause(0.05)
            continue
        queries += 1
        progress.write_text(str(queries))
        if before[0] != after[0]:
            continue  # Redis was restarted in between: its counter does not bracket this count
        if not before[1] <= counted <= after[1] or counted != distinct:
            journal.write(anomaly=True, before=before, counted=counted, distinct=distinct, after=after, turn=turn)
    store.close()
    journal.write(done=True, queries=queries, unavailable=unavailable)


def _connected(folder: Path) -> Store:
    """The store, when it can be opened: on a busy machine Redis may not answer in time."""
    opened: list[Store] = []

    def opens() -> bool:
        try:
            opened.append(connect(settings_of(folder)))
        except TierUnavailable:
            return False
        return True

    wait_until(opens, CONNECT_WAIT_S, "the store opens")
    return opened[0]


def _counter(store: Any) -> tuple[Any, int]:
    """(what identifies this life of Redis, events appended and still there)."""
    cut = store.tiers.hot.cut()
    facts = [(shard.incarnation, shard.era) for shard in cut]
    return (store.tiers.hot.facts().run_id, facts), sum(shard.events_total for shard in cut)


def work(where: str, number: str) -> None:
    """The worker itself, with a flag file up while it merges so that the runner can kill it there."""
    folder = Path(where)
    try:
        _work(folder, open_tiers(settings_of(folder)), number)
    except TierUnavailable as exc:
        print(f"not now: {exc}", flush=True)
        sys.exit(NOT_NOW)


def _work(folder: Path, tiers: Tiers, number: str) -> None:
    flag = folder / "merging"
    write_merged, merged = tiers.warm.write_merged, tiers.ledger.merged

    def flagged_write(*args: Any, **kwargs: Any) -> Any:
        flag.touch()
        return write_merged(*args, **kwargs)

    def flagged_commit(*args: Any, **kwargs: Any) -> Any:
        try:
            return merged(*args, **kwargs)
        finally:
            flag.unlink(missing_ok=True)

    flag.unlink(missing_ok=True)
    tiers.warm.write_merged = flagged_write  # type: ignore[method-assign]
    tiers.ledger.merged = flagged_commit  # type: ignore[method-assign]
    (folder / "worker.ready").write_text(number)
    Worker(tiers).run()


ROLES = {"producer": produce, "reader": read}

if __name__ == "__main__":
    role, place, which, dice_seed, per_second = sys.argv[1:6]
    os.nice(LOAD_NICE)
    ROLES[role](Path(place), int(which), int(dice_seed), float(per_second))
