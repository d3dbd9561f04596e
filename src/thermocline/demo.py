"""The demo: real conversations appended, settled, merged and archived in front of you, then asked about.

It works in a namespace of its own, which it drops and makes anew. The last few events are left in Redis, and those older than
the warm window are archived, so that the answers come from three tiers at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from thermocline.archiver.verify import Verification
from thermocline.archiver.worker import Worker, WorkReport
from thermocline.config import Settings
from thermocline.errors import InvalidEvent
from thermocline.event import Event
from thermocline.feed import StoppedAt, batches, check
from thermocline.ingest.append import Client
from thermocline.namespaces import drop, names
from thermocline.ndjson import parse_line
from thermocline.sample_import import events_of, load_runs
from thermocline.store import Store
from thermocline.tiers.opening import open_tiers

NAMESPACE: Final = "demo"
OVERRIDES: Final[Mapping[str, Any]] = {"namespace": NAMESPACE, "warm": {"fan_in": 3}}
"""Few segments become one, so that a merge is seen after seconds and not after hours."""
DAYS: Final = 10
PARTS: Final = 4
HOT_SHARE: Final = 0.05
"""Of the events, those left in Redis at the end."""
OWN_EVENTS_MAX: Final = 200_000
CALL_EVENTS_MAX: Final = 5_000


class Question(NamedTuple):
    """A query worth asking of any store."""

    title: str
    sql: str


QUESTIONS: Final = (
    Question(
        "What happened in the last three days?",
        "SELECT event_type, count(*) AS events,\n"
        "       count(DISTINCT conversation_id) AS conversations,\n"
        "       count(*) FILTER (status = 'error') AS errors,\n"
        "       round(median(duration_ms)) AS median_ms\n"
        "FROM events WHERE timestamp >= now() - INTERVAL 3 DAY\n"
        "GROUP BY event_type ORDER BY events DESC LIMIT 6",
    ),
    Question(
        "How much was it per day? (hourly_stats reads rollups, which are never sampled)",
        "SELECT hour::DATE AS day, sum(event_count) AS events,\n"
        "       count(DISTINCT conversation_id) AS conversations,\n"
        "       sum(total_bytes) AS content_bytes\n"
        "FROM hourly_stats GROUP BY day ORDER BY day",
    ),
    Question(
        "And over all of it? (what is archived is a sample, and says so)",
        "SELECT event_type, count(*) AS found,\n"
        "       count(*) FILTER (sample_rate < 1) AS of_a_sample,\n"
        "       round(sum(1 / sample_rate)) AS appended_about\n"
        "FROM events GROUP BY event_type ORDER BY appended_about DESC LIMIT 6",
    ),
)


class Counts(NamedTuple):
    """Whether statistics hold although events were sampled."""

    appended: int
    in_statistics: int
    """Events that hourly_stats counts."""
    sampled_out: int


class Step(NamedTuple):
    """Something the demo has just done."""

    events: int
    """Appended; 0 when the worker worked."""
    report: WorkReport | None
    """What the worker did; None when events were appended."""
    took_s: float
    share: float
    """Of the whole demo, 0 to 1."""


def sample_events(now_us: int) -> list[Event]:
    """The shipped conversations, spread over the ten days before `now_us`."""
    return [Event(**event) for event in events_of(load_runs(), end_us=now_us, days=DAYS)]


def own_events(file: Path, now_us: int) -> list[Event]:
    """The first OWN_EVENTS_MAX events of an NDJSON file; those without a timestamp are spread over the ten days before `now_us`.

    StoppedAt names the first line that is no event; OSError the file.
    """
    events: list[Event] = []
    with FileIO(file) as stream:
        for number, line in itertools.chain.from_iterable(batches(stream)):
            if len(events) >= OWN_EVENTS_MAX:
                break
            if line.strip():
                events.append(_checked(number, line))
    step_us = DAYS * 86_400_000_000 // max(1, len(events))
    for place, event in enumerate(events):
        if event.timestamp is None:
            events[place] = msgspec.structs.replace(event, timestamp=now_us - (len(events) - place) * step_us)
    return events


def _checked(number: int, line: bytes) -> Event:
    try:
        event = parse_line(line)
        check(event)
    except InvalidEvent as exc:
        raise StoppedAt(number, f"{exc.field}: {exc.problem}", appended=0) from exc
    return event


def run(settings: Settings, events: Sequence[Event]) -> Iterator[Step]:
    """Append `events` part by part, working once after each; what was done, as it is done.

    settings  made with OVERRIDES; a namespace of that name is dropped first
    LeaseHeld: a worker is at the namespace. Other errors are those of append_many and Worker.once.
    """
    if settings.namespace in names(settings):
        drop(settings)
    hot = max(1, int(len(events) * HOT_SHARE))
    borders = [(len(events) - hot) * part // PARTS for part in range(PARTS + 1)]
    with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
        worker = Worker(tiers)
        for part, (start, end) in enumerate(itertools.pairwise(borders)):
            yield _append(client, events[start:end], share=(part + 0.1) / PARTS)
            begin = time.monotonic()
            report = worker.once()
            yield Step(0, report, time.monotonic() - begin, (part + 1) / PARTS)
        yield _append(client, events[borders[-1] :], share=1.0)


def counts(store: Store, checked: Verification) -> Counts:
    """What hourly_stats counts, beside what was appended and is readable."""
    [(counted,)] = store.sql("SELECT coalesce(sum(event_count), 0)::BIGINT FROM hourly_stats").fetchall()
    return Counts(
        appended=sum(shard.appended - shard.rejected - shard.lost for shard in checked.shards),
        in_statistics=counted,
        sampled_out=sum(shard.sampled_out for shard in checked.shards),
    )


def _append(client: Client, events: Sequence[Event], *, share: float) -> Step:
    begin = time.monotonic()
    for first in range(0, len(events), CALL_EVENTS_MAX):
        client.append_many(events[first : first + CALL_EVENTS_MAX])
    return Step(len(events), None, time.monotonic() - begin, share)
