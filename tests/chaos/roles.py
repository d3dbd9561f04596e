"""What each process of a chaos run does: `python -m tests.chaos.roles ROLE FOLDER NUMBER SEED`.

Every role ends when FOLDER/stop exists and writes FOLDER/<role>-<number>.ndjson, one object per line, flushed at once.
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

from tests.waiting import wait_until
from thermocline.config import Settings, load
from thermocline.errors import Backpressure, OutcomeUnknown, PartialAppend, TierUnavailable
from thermocline.event import Event, Receipt

CONVERSATIONS = 300
BATCH_EVENTS_MAX = 200
PACE_S = 0.4
"""Longest pause of a producer between two batches: some 500 events a second each, which two cores can also read and settle."""
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


def pause(seconds: float) -> None:
    """Until so many seconds are over."""
    end_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end_s, seconds + 30, "the pause is over")


def produce(folder: Path, number: int, seed: int) -> None:
    """Append batches; journal every receipt, and every event whose append was refused for certain."""
    from thermocline.ingest.append import Client

    dice = random.Random(seed * 1000 + number)
    journal = Journal(folder, f"producer-{number}")
    client = Client(settings_of(folder))
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


def read(folder: Path, number: int, seed: int) -> None:
    """Count all events over and over, each count bracketed by Redis' own counter; journal what is not within its bracket."""
    from thermocline.store import connect

    dice = random.Random(seed * 2000 + number)
    journal = Journal(folder, f"reader-{number}")
    store = connect(settings_of(folder))
    journal.write(opened=time.time())
    progress = folder / f"reader-{number}.count"
    queries = unavailable = 0
    for turn in running(folder):
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


def _counter(store: Any) -> tuple[Any, int]:
    """(what identifies this life of Redis, events appended and still there)."""
    cut = store.tiers.hot.cut()
    facts = [(shard.incarnation, shard.era) for shard in cut]
    return (store.tiers.hot.facts().run_id, facts), sum(shard.events_total for shard in cut)


def work(folder: Path, number: int, seed: int) -> None:
    """The worker itself, with a flag file up while it merges so that the runner can kill it there."""
    from thermocline.archiver.worker import Worker
    from thermocline.tiers.opening import open_tiers

    tiers = open_tiers(settings_of(folder))
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
    Journal(folder, "worker").write(ready=time.time(), number=number, seed=seed)
    Worker(tiers).run()


ROLES = {"producer": produce, "reader": read, "worker": work}

if __name__ == "__main__":
    role, where, which, dice_seed = sys.argv[1:5]
    if role != "worker":
        os.nice(LOAD_NICE)
    ROLES[role](Path(where), int(which), int(dice_seed))
